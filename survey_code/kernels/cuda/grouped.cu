// Groups of short rows, made long by a projection, or spread over some columns.

#include "composed.cuh"

// Fields: values, bit planes of the remap (0: groups are ranges of ids), planes,
// running counts, groups; then for each group its first number in `values`, width,
// projection, place of each column (or 0), first id.
constexpr int GROUP_FIELDS = 5;

template <int E> struct Grouped {
  static constexpr int ENTRIES = E, AHEAD = 2, WORDS = 8;
  const long long* fields;
  const float* values;
  int dim, groups;

  __device__ __forceinline__ Grouped(const long long* f, int dim)
      : fields(f), values(array<float>(f, 0)), dim(dim), groups(field(f, 4)) {}

  struct Row {
    const float* numbers;
    const float* projection;
    const short* places;   // which number a column takes, or -1
    long long width;
  };

  __device__ __forceinline__ Row find(long long id) const {
    const unsigned long long* planes = array<unsigned long long>(fields, 1);
    long long group = 0, row;
    if (!planes) {
      while (group + 1 < groups && id >= field(of(group + 1), 4)) ++group;
      row = id - field(of(group), 4);
    } else {
      row = rank(planes, id, group);
    }
    const long long* f = of(group);
    const long long width = field(f, 1);
    return {values + field(f, 0) + row * width, array<float>(f, 2),
            array<short>(f, 3), width};
  }

  __device__ __forceinline__ const long long* of(long long group) const {
    return fields + 5 + group * GROUP_FIELDS;
  }

  // Group of an id, and how many of the group stand before it: the block's running
  // count, and the ids of its own block whose group has the same bits.
  __device__ __forceinline__ long long rank(const unsigned long long* planes,
                                            long long id, long long& group) const {
    const int count = field(fields, 2), word = id / 64 % WORDS, bit = id % 64;
    const long long block = id / (64 * WORDS);
    planes += block * count * WORDS;
    group = 0;
    for (int p = 0; p < count; ++p)
      group |= (long long)(planes[p * WORDS + word] >> bit & 1) << p;
    long long before = array<unsigned>(fields, 3)[block * groups + group];
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

  __device__ __forceinline__ void read(const Row& row, int first,
                                       float (&entries)[E]) const {
    const int width = row.width;
    if (row.projection) {
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] = 0.0f;
#pragma unroll 4
      for (int k = 0; k < width; ++k) {
        const float number = __ldg(row.numbers + k);
        float weights[E];
        load_floats<E>(row.projection + k * dim + first, weights);
#pragma unroll
        for (int j = 0; j < E; ++j)
          entries[j] = __fadd_rn(entries[j], __fmul_rn(number, weights[j]));
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int at = !row.places ? (width ? first + j : -1)
                     : first + j < dim ? row.places[first + j] : -1;
      entries[j] = at < 0 ? 0.0f : __ldg(row.numbers + at);
    }
  }
};
