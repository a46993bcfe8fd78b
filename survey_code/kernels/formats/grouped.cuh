// Groups of short rows, made long by a projection, or spread over some columns.

#pragma once

#include "dense.cuh"

// A short row, as the others of a group are handed it.
template <class Numbers> struct ShortRow {
  const GroupFields<Numbers>* group;
  int width;
  typename Numbers::Place row;

  __device__ __forceinline__ ShortRow() {}
  __device__ __forceinline__ ShortRow(const GroupFields<Numbers>* group, int width,
                                      long long row)
      : group(group), width(width), row(Numbers(group->numbers, width).find(row)) {}

  __device__ __forceinline__ float number(int at) const {
    return read_number(Numbers(group->numbers, width), row, at);
  }
#ifdef ON_CPU
  template <int E> __forceinline__ void numbers_from(int first, float (&entries)[E]) const {
    for (int j = 0; j < E; ++j) entries[j] = number(first + j);
  }
  __forceinline__ void fetch() const { fetch_row(Numbers(group->numbers, width), row); }
#endif
};

// Plain numbers are read where they are.
template <typename Number, int AHEAD> struct ShortRow<Dense<1, Number, AHEAD>> {
  const Number* numbers;
  long long width;

  __device__ __forceinline__ ShortRow() {}
  __device__ __forceinline__ ShortRow(const GroupFields<Dense<1, Number, AHEAD>>* group,
                                      int width, long long row)
      : numbers(reinterpret_cast<const Number*>(
            array<unsigned char>(__ldg(&group->numbers.table)) +
            row * __ldg(&group->numbers.stride))),
        width(width) {}

  __device__ __forceinline__ float number(int at) const { return widen(__ldg(numbers + at)); }
#ifdef ON_CPU
  template <int E> __forceinline__ void numbers_from(int first, float (&entries)[E]) const {
    for (int j = 0; j < E; ++j) entries[j] = widen(numbers[first + j]);
  }
  __forceinline__ void fetch() const { fetch_bytes(numbers, width * sizeof(Number)); }
#endif
};

// Numbers: the format of the groups' tables, one number at a time.
template <int E, class Numbers> struct Grouped {
  static constexpr int ENTRIES = E, AHEAD = 2, WORDS = 8;
  using Fields = GroupedFields;
  using Group = GroupFields<Numbers>;
  const Group* of;
  const unsigned long long* planes;    // bit planes of the remap; none: ranges of ids
  const unsigned* running;             // ids of each group before each block
  int dim, groups, bits;

  __device__ __forceinline__ Grouped(const Fields& f, int dim)
      : of(array<Group>(f.listed)), planes(array<unsigned long long>(f.planes)),
        running(array<unsigned>(f.before)), dim(dim), groups(f.groups), bits(f.bits) {}

  struct Place {
    ShortRow<Numbers> row;
    const float* projection;
    const short* places;   // which number a column takes, or -1
  };

  __device__ __forceinline__ Place find(long long id) const {
    long long group = 0, row;
    if (!planes) {
      while (group + 1 < groups && id >= __ldg(&of[group + 1].first)) ++group;
      row = id - __ldg(&of[group].first);
    } else {
      row = rank(planes, id, group);
    }
    const Group* own = of + group;
    return {ShortRow<Numbers>(own, __ldg(&own->width), row),
            array<float>(__ldg(&own->projection)), array<short>(__ldg(&own->places))};
  }

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const {
    const long long block = id / (64 * WORDS);
    if (!planes) return;
    fetch_bytes(planes + block * bits * WORDS, bits * WORDS * 8);
    fetch_bytes(running + block * groups, groups * 4);
  }
  __forceinline__ void fetch(const Place& found) const { found.row.fetch(); }
#endif

  // Group of an id, and how many of the group stand before it: the block's running
  // count, and the ids of its own block whose group has the same bits.
  __device__ __forceinline__ long long rank(const unsigned long long* planes,
                                            long long id, long long& group) const {
    const int count = bits, word = id / 64 % WORDS, bit = id % 64;
    const long long block = id / (64 * WORDS);
    planes += block * count * WORDS;
    group = 0;
    for (int p = 0; p < count; ++p)
      group |= (long long)(planes[p * WORDS + word] >> bit & 1) << p;
    long long before = running[block * groups + group];
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
      unsigned long long same = w < word ? ~0ull : w == word ? (1ull << bit) - 1 : 0;
      for (int p = 0; p < count && same; ++p) {
        const unsigned long long plane = planes[p * WORDS + w];
        same &= group >> p & 1 ? plane : ~plane;
      }
      before += __popcll(same);
    }
    return before;
  }

  __device__ __forceinline__ void read(const Place& row, int first,
                                       float (&entries)[E]) const {
    const int width = row.row.width;
#ifdef ON_CPU
    if (row.projection && E % 8 == 0) {
      constexpr int VECTORS = E % 8 ? 1 : E / 8;
      Floats sums[VECTORS] = {};
      for (int k = 0; k < width; ++k) {
        const float number = row.row.number(k);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)
          sums[v] += number * load_vector<Floats>(row.projection + k * dim + first + 8 * v);
      }
      memcpy(entries, sums, sizeof entries);
      return;
    }
#endif
    if (row.projection) {
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] = 0.0f;
#pragma unroll 4
      for (int k = 0; k < width; ++k) {
        const float number = row.row.number(k);
        float weights[E];
        load_floats<E>(row.projection + k * dim + first, weights);
#pragma unroll
        for (int j = 0; j < E; ++j)
          entries[j] = __fadd_rn(entries[j], __fmul_rn(number, weights[j]));
      }
      return;
    }
#ifdef ON_CPU
    if (!row.places && width) {
      row.row.numbers_from(first, entries);
      return;
    }
#endif
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int at = !row.places ? (width ? first + j : -1)
                     : first + j < dim ? row.places[first + j] : -1;
      entries[j] = at < 0 ? 0.0f : row.row.number(at);
    }
  }
};
