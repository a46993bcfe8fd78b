// ROBE: blocks of a row lie anywhere in one array.

#pragma once

#include "reading.cuh"

struct Blocks {
  const FlatFields& f;
  int length;

  __device__ __forceinline__ explicit Blocks(const FlatFields& f)
      : f(f), length(f.length) {}

  static __device__ __forceinline__ unsigned long long shift(long long id, int block) {
    return id + block * 0x9E3779B97F4A7C15ull;
  }

  __device__ __forceinline__ long long start(long long id, int block) const {
    const unsigned long long mixed =
        mix(shift(id, block), f.mixing[0], f.mixing[1], f.mixing[2]);
    return mixed - divide(mixed, f.places, f.inverse) * f.places;
  }

  __device__ __forceinline__ float sign(long long id, int block) const {
    if (!f.sign[0]) return 1.0f;
    const bool negative =
        mix(shift(id, block), f.sign[0], f.sign[1], f.sign[2]) >> 31 & 1;
    return negative ? -1.0f : 1.0f;
  }
};

// Entries values[start ..): blocks are a multiple of E long, so that a thread's
// entries lie in one.  Four that begin anywhere lie in two quads, which are read whole.
template <int E>
__device__ __forceinline__ void read_block(const float* values, unsigned long long start,
                                           float sign, int left, float (&entries)[E]) {
#ifdef ON_CPU
  for (int j = 0; j < E; ++j) entries[j] = sign * values[start + j];
#else
  if constexpr (E == 4) {
    const int shift = start % 4;
    const float* quad = values + (start - shift);
    float near[8];
    load_floats<4>(quad, reinterpret_cast<float(&)[4]>(near[0]));
    load_floats<4>(quad + (shift ? 4 : 0), reinterpret_cast<float(&)[4]>(near[4]));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float low = shift & 1 ? near[j + 1] : near[j];
      const float high = shift & 1 ? near[(j + 3) % 8] : near[j + 2];
      entries[j] = sign * (shift & 2 ? high : low);
    }
  } else {
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = j < left ? sign * __ldg(values + start + j) : 0.0f;
  }
#endif
}

// Rows of many blocks, each found where it is read.
template <int E> struct Flat {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = FlatFields;
  using Place = long long;
  const float* values;
  Blocks blocks;
  int dim;

  __device__ __forceinline__ Flat(const Fields& f, int dim)
      : values(array<float>(f.values)), blocks(f), dim(dim) {}

  __device__ __forceinline__ long long find(long long id) const { return id; }

  __device__ __forceinline__ void read(long long id, int first,
                                       float (&entries)[E]) const {
    const int block = first / blocks.length;
    const long long start = blocks.start(id, block) + first - block * blocks.length;
    read_block<E>(values, start, blocks.sign(id, block), dim - first, entries);
  }
};

// Rows of a few blocks, all found at once.
template <int E, int COUNT> struct FewBlocks {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = FlatFields;
  const float* values;
  Blocks blocks;
  int dim;

  __device__ __forceinline__ FewBlocks(const Fields& f, int dim)
      : values(array<float>(f.values)), blocks(f), dim(dim) {}

  struct Place {
    unsigned start[COUNT];
    unsigned negative;    // a bit for each block
  };

  __device__ __forceinline__ Place find(long long id) const {
    Place found = {};
#pragma unroll
    for (int block = 0; block < COUNT; ++block) {
      found.start[block] = blocks.start(id, block);
      found.negative |= unsigned(blocks.sign(id, block) < 0.0f) << block;
    }
    return found;
  }

#ifdef ON_CPU
  __forceinline__ void fetch(const Place& found) const {
    for (unsigned start : found.start) fetch_bytes(values + start, blocks.length * 4);
  }
#endif

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    const int block = first / blocks.length;
    unsigned start = found.start[0];
#pragma unroll
    for (int k = 1; k < COUNT; ++k)
      if (k == block) start = found.start[k];
    const float sign = found.negative >> block & 1 ? -1.0f : 1.0f;
    const unsigned long long from = (unsigned long long)start + first - block * blocks.length;
    read_block<E>(values, from, sign, dim - first, entries);
  }
};
