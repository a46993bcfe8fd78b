// Rows of small integers in one stream of bits.

#pragma once

#include "reading.cuh"

template <int E> struct Packed {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = PackedFields;
  using Place = unsigned;
  const unsigned* words;
  int bits, width;

  __device__ __forceinline__ Packed(const Fields& f, int dim)
      : words(array<unsigned>(f.words)), bits(f.bits), width(dim) {}

  __device__ __forceinline__ Place find(long long id) const { return id; }

#ifdef ON_CPU
  __forceinline__ void fetch(Place row) const {
    const long long start = (long long)row * width * bits;
    fetch_bytes(words + (start >> 5), (width * bits >> 3) + 8);
  }
#endif

  // Integer j of a row, which lies in at most two words.
  __device__ __forceinline__ int number(Place row, int j) const {
    const long long start = ((long long)row * width + j) * bits;
    const unsigned* word = words + (start >> 5);
    const unsigned long long pair =
        (unsigned long long)__ldg(word + 1) << 32 | __ldg(word);
    return pair >> (start & 31) & ((1u << bits) - 1);
  }

  __device__ __forceinline__ void read(Place row, int first, float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = first + j < width ? float(number(row, first + j)) : 0.0f;
  }
};
