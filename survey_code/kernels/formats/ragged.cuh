// Rows of different lengths, one after another: prefixes (ragged), or entries with
// the numbers of their columns (sparse), which may name anchors to add up.

#pragma once

#include "reading.cuh"

// Prefixes.
template <int E, typename Number, typename Length> struct Ragged {
  using Fields = RaggedFields;
  static constexpr int ENTRIES = E, AHEAD = 4, BLOCK = 32;
#ifdef ON_CPU
  static constexpr bool ADDS = true;
#endif
  const Number* values;
  const Length* lengths;
  const unsigned* starts;

  __device__ __forceinline__ Ragged(const Fields& f, int)
      : values(array<Number>(f.values)), lengths(array<Length>(f.lengths)),
        starts(array<unsigned>(f.starts)) {}

  struct Place {
    const Number* first;
    long long length;
  };

  __device__ __forceinline__ Place find(long long id) const {
    const int inside = id % BLOCK;
    const unsigned before = sum_first(lengths + (id - inside), inside);
    return {values + (unsigned long long)starts[id / BLOCK] + before, __ldg(lengths + id)};
  }

  // Sum of the first lengths of a block, which one sector holds.  Lengths of a byte
  // are added up four at a time; their array is padded to whole words.
  static __device__ __forceinline__ unsigned sum_first(const Length* first, int count) {
    unsigned sum = 0;
#ifdef ON_CPU
    if constexpr (sizeof(Length) == 1) {
      int k = 0;
      for (; k + 8 <= count; k += 8) sum += add_bytes(first + k);
      for (; k < count; ++k) sum += first[k];
      return sum;
    }
#endif
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

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const {
    fetch_bytes(lengths + id / BLOCK * BLOCK, BLOCK * sizeof(Length));
    fetch_bytes(starts + id / BLOCK, 4);
  }
  __forceinline__ void fetch(const Place& row) const {
    fetch_bytes(row.first, row.length * sizeof(Number));
  }

  // What there is of a row added to others, times a factor: the rest is 0.
  void add(const Place& row, float factor, float* sums) const {
    for (long long k = 0; k < row.length; ++k) sums[k] += factor * widen(row.first[k]);
  }
#endif

  __device__ __forceinline__ void read(const Place& row, int first,
                                       float (&entries)[E]) const {
#ifdef ON_CPU
    const int many = row.length - first < E ? int(row.length) - first : E;
    int k = 0;
    for (; k < many; ++k) entries[k] = widen(row.first[first + k]);
    for (; k < E; ++k) entries[k] = 0.0f;
#else
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = first + j < row.length ? widen(row.first[first + j]) : 0.0f;
#endif
  }
};

// Entries and their columns; where none is, a zero, or the fill of the id's group.
template <int E, typename Number, typename Column, bool FILLED> struct Sparse {
  using Fields = SparseFields;
  static constexpr int ENTRIES = E, AHEAD = 1, CHUNK = 4;
  const Number* values;
  const Column* columns;
  const unsigned* offsets;
  const float* fills;
  const long long* starts;     // first id of each group
  int dim, block_rows, groups;

  __device__ __forceinline__ Sparse(const Fields& f, int dim)
      : values(array<Number>(f.values)), columns(array<Column>(f.columns)),
        offsets(array<unsigned>(f.offsets)), fills(array<float>(f.fills)),
        starts(array<long long>(f.starts)), dim(dim), block_rows(f.block_rows),
        groups(f.groups) {}

  struct Place {
    unsigned first, last;
    int shift;   // what a column's number has added
    int group;
  };

  __device__ __forceinline__ Place find(long long id) const {
    const long long block = id / block_rows;
    const int shift = int(id - block * block_rows) * dim;
    Place row = {offsets[block], offsets[block + 1], shift, 0};
    if (FILLED && groups > 1) row.group = search(starts, 0, groups, id + 1) - 1;
    if (block_rows > 1) {
      row.first = search(columns, row.first, row.last, row.shift);
      row.last = search(columns, row.first, row.last, row.shift + dim);
    }
    return row;
  }

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const { fetch_bytes(offsets + id / block_rows, 8); }
  __forceinline__ void fetch(const Place& row) const {
    fetch_bytes(columns + row.first, (row.last - row.first) * sizeof(Column));
    fetch_bytes(values + row.first, (row.last - row.first) * sizeof(Number));
  }

  static constexpr bool ADDS = !FILLED;
  void add(const Place& row, float factor, float* sums) const {
    for (unsigned at = row.first; at < row.last; ++at)
      sums[int(columns[at]) - row.shift] += factor * widen(values[at]);
  }
#endif

  __device__ __forceinline__ void read(const Place& row, int first,
                                       float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = FILLED && first + j < dim
                       ? __ldg(fills + (long long)row.group * dim + first + j) : 0.0f;
#ifdef ON_CPU
    for (unsigned at = row.first; at < row.last; ++at) {
      const unsigned column = int(columns[at]) - row.shift - first;
      if (column < unsigned(E)) entries[column] = widen(values[at]);
    }
#else
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
#endif
  }
};

// Entries that name anchors.
template <int E, class Rows, typename Column> struct Anchors {
  static constexpr int ENTRIES = E, AHEAD = 2, CHUNK = 4;
  using Fields = AnchorFields<Rows>;
  using Place = uint2;
  Rows anchors;
  const float* weights;
  const Column* columns;
  const unsigned* offsets;

  __device__ __forceinline__ Anchors(const Fields& f, int dim)
      : anchors(f.anchors, dim), weights(array<float>(f.weights)),
        columns(array<Column>(f.columns)), offsets(array<unsigned>(f.offsets)) {}

  __device__ __forceinline__ uint2 find(long long id) const {
    return make_uint2(offsets[id], offsets[id + 1]);
  }

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const { fetch_bytes(offsets + id, 8); }
  __forceinline__ void fetch(uint2 row) const {
    fetch_bytes(columns + row.x, (row.y - row.x) * sizeof(Column));
    fetch_bytes(weights + row.x, (row.y - row.x) * sizeof(float));
  }
#endif

  __device__ __forceinline__ void read(uint2 row, int first,
                                       float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = 0.0f;
#ifdef ON_CPU
    for (unsigned at = row.x; at < row.y; ++at) {
      float anchor[E];
      anchors.read(anchors.find(columns[at]), first, anchor);
      add_scaled(weights[at], anchor, entries);
    }
#else
    for (unsigned at = row.x; at < row.y; at += CHUNK) {
      float anchor[CHUNK][E], weight[CHUNK];
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) {
        const unsigned place = at + k < row.y ? at + k : row.y - 1;
        weight[k] = __ldg(weights + place);
        anchors.read(anchors.find(__ldg(columns + place)), first, anchor[k]);
      }
#pragma unroll
      for (int k = 0; k < CHUNK; ++k)
#pragma unroll
        for (int j = 0; j < E; ++j)
          if (at + k < row.y)
            entries[j] = __fadd_rn(entries[j], __fmul_rn(weight[k], anchor[k][j]));
    }
#endif
  }
};
