// Rows of different lengths, one after another: prefixes (ragged), or entries with
// the numbers of their columns (sparse), which may name anchors to add up.

#include "composed.cuh"
#include "numbers.cuh"

// Fields: values, lengths, first place of every 32 rows.
template <int E, typename Number, typename Length> struct Ragged {
  static constexpr int ENTRIES = E, BLOCK = 32;
  const Number* values;
  const Length* lengths;
  const unsigned* starts;

  __device__ __forceinline__ Ragged(const long long* f, int)
      : values(array<Number>(f, 0)), lengths(array<Length>(f, 1)),
        starts(array<unsigned>(f, 2)) {}

  struct Row {
    const Number* first;
    int length;
  };

  __device__ __forceinline__ Row find(long long id) const {
    const long long block = id / BLOCK * BLOCK;
    unsigned before = 0;
    // One sector holds the lengths of a block.
#pragma unroll 8
    for (long long row = block; row < id; ++row) before += __ldg(lengths + row);
    return {values + (unsigned long long)starts[id / BLOCK] + before,
            (int)__ldg(lengths + id)};
  }

  __device__ __forceinline__ void read(const Row& row, int first,
                                       float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = first + j < row.length ? widen(row.first[first + j]) : 0.0f;
  }
};

// Fields: values, columns, offsets, rows of a block.
template <int E, typename Number, typename Column> struct Sparse {
  static constexpr int ENTRIES = E;
  const Number* values;
  const Column* columns;
  const unsigned* offsets;
  int dim, block_rows;

  __device__ __forceinline__ Sparse(const long long* f, int dim)
      : values(array<Number>(f, 0)), columns(array<Column>(f, 1)),
        offsets(array<unsigned>(f, 2)), dim(dim), block_rows(field(f, 3)) {}

  struct Row {
    unsigned first, last;
    int shift;   // what a column's number has added
  };

  __device__ __forceinline__ Row find(long long id) const {
    const long long block = id / block_rows;
    Row row = {offsets[block], offsets[block + 1], int(id - block * block_rows) * dim};
    if (block_rows > 1) {
      row.first = search(columns, row.first, row.last, row.shift);
      row.last = search(columns, row.first, row.last, row.shift + dim);
    }
    return row;
  }

  __device__ __forceinline__ void read(const Row& row, int first,
                                       float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = 0.0f;
    for (unsigned at = row.first; at < row.last; ++at) {
      const int column = int(__ldg(columns + at)) - row.shift - first;
#pragma unroll
      for (int j = 0; j < E; ++j)
        if (column == j) entries[j] = widen(values[at]);
    }
  }
};

// Fields: anchors, weights, columns (the anchors' numbers), offsets.
template <int E, typename Column> struct Anchors {
  static constexpr int ENTRIES = E;
  const float *anchors, *weights;
  const Column* columns;
  const unsigned* offsets;
  int dim;

  __device__ __forceinline__ Anchors(const long long* f, int dim)
      : anchors(array<float>(f, 0)), weights(array<float>(f, 1)),
        columns(array<Column>(f, 2)), offsets(array<unsigned>(f, 3)), dim(dim) {}

  __device__ __forceinline__ uint2 find(long long id) const {
    return make_uint2(offsets[id], offsets[id + 1]);
  }

  __device__ __forceinline__ void read(uint2 row, int first,
                                       float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = 0.0f;
    for (unsigned at = row.x; at < row.y; ++at) {
      float anchor[E];
      load_floats<E>(anchors + (long long)columns[at] * dim + first, anchor);
      const float weight = weights[at];
#pragma unroll
      for (int j = 0; j < E; ++j)
        entries[j] = __fadd_rn(entries[j], __fmul_rn(weight, anchor[j]));
    }
  }
};
