// Rows of different lengths, one after another: prefixes (ragged), or entries with
// the numbers of their columns (sparse), which may name anchors to add up.

#include "composed.cuh"
#include "numbers.cuh"

// Fields: values, lengths, first place of every 32 rows.
template <int E, typename Number, typename Length> struct Ragged {
  static constexpr int ENTRIES = E, AHEAD = 4, BLOCK = 32;
  const Number* values;
  const Length* lengths;
  const unsigned* starts;

  __device__ __forceinline__ Ragged(const long long* f, int)
      : values(array<Number>(f, 0)), lengths(array<Length>(f, 1)),
        starts(array<unsigned>(f, 2)) {}

  struct Row {
    const Number* first;
    long long length;
  };

  __device__ __forceinline__ Row find(long long id) const {
    const int inside = id % BLOCK;
    const unsigned before = sum_first(lengths + (id - inside), inside);
    return {values + (unsigned long long)starts[id / BLOCK] + before, __ldg(lengths + id)};
  }

  // Sum of the first lengths of a block, which one sector holds.  Lengths of a byte
  // are added up four at a time; their array is padded to whole words.
  static __device__ __forceinline__ unsigned sum_first(const Length* first, int count) {
    unsigned sum = 0;
    if constexpr (sizeof(Length) == 1) {
      const unsigned* words = reinterpret_cast<const unsigned*>(first);
#pragma unroll
      for (int w = 0; w < BLOCK / 4; ++w) {
        const int bytes = count - 4 * w;
        if (bytes <= 0) break;
        const unsigned mask = bytes < 4 ? (1u << 8 * bytes) - 1 : ~0u;
        sum = __dp4a(__ldg(words + w) & mask, 0x01010101u, sum);
      }
    } else {
      for (int k = 0; k < count; ++k) sum += __ldg(first + k);
    }
    return sum;
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
  static constexpr int ENTRIES = E, AHEAD = 2, CHUNK = 4;
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
    // Some entries are asked for before any is looked at.
    for (unsigned at = row.first; at < row.last; at += CHUNK) {
      int column[CHUNK];
      Number value[CHUNK];
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) {
        const unsigned place = at + k < row.last ? at + k : row.last - 1;
        column[k] = int(__ldg(columns + place)) - row.shift - first;
        value[k] = values[place];
      }
#pragma unroll
      for (int k = 0; k < CHUNK; ++k)
#pragma unroll
        for (int j = 0; j < E; ++j)
          if (column[k] == j) entries[j] = widen(value[k]);
    }
  }
};

// Fields: anchors, weights, columns (the anchors' numbers), offsets.
template <int E, typename Column> struct Anchors {
  static constexpr int ENTRIES = E, AHEAD = 2, CHUNK = 4;
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
    for (unsigned at = row.x; at < row.y; at += CHUNK) {
      float anchor[CHUNK][E], weight[CHUNK];
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) {
        const unsigned place = at + k < row.y ? at + k : row.y - 1;
        weight[k] = __ldg(weights + place);
        load_floats<E>(anchors + (long long)__ldg(columns + place) * dim + first,
                       anchor[k]);
      }
#pragma unroll
      for (int k = 0; k < CHUNK; ++k)
#pragma unroll
        for (int j = 0; j < E; ++j)
          if (at + k < row.y)
            entries[j] = __fadd_rn(entries[j], __fmul_rn(weight[k], anchor[k][j]));
    }
  }
};
