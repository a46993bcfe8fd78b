// Rows of codes of 1 to 8 bits that name the numbers of one small table, times what the
// row stores behind its codes: nothing, a float16, or a power of two in a byte for each
// block of columns.
//
// On the GPU a row lies as   codes | scales | padding   to whole 32-byte sectors, so that
// words of it are aligned.

#pragma once

#include "reading.cuh"

constexpr int PLAIN = 0, HALVES = 1, POWERS = 2;

// E entries share a scale: blocks of columns are a multiple of E wide.
template <int E, int BITS, int SCALING> struct Levels {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = LevelsFields;
  using Place = unsigned;
  const unsigned char* table;
  const float* levels;
  unsigned stride;    // bytes from row to row
  int tail, block;    // where a row's scales stand; columns of a block

  __device__ __forceinline__ Levels(const Fields& f, int)
      : table(array<unsigned char>(f.table)), levels(array<float>(f.levels)),
        stride(f.stride), tail(f.tail), block(f.block) {}

  __device__ __forceinline__ Place find(long long id) const { return id; }
#ifdef ON_CPU
  __forceinline__ void fetch(Place row) const {
    fetch_bytes(table + (unsigned long long)row * stride, stride);
  }
#endif

  __device__ __forceinline__ float scale(const unsigned char* row, int first) const {
    if constexpr (SCALING == HALVES) {
      return load_bytewise<__half>(row + tail);
    } else if constexpr (SCALING == POWERS) {
      // Byte e is 2^(e - 127): the exponent of a float, the least of which is special.
      const unsigned power = __ldg(row + tail + first / block);
      return __uint_as_float(power ? power << 23 : 1u << 22);
    }
    return 1.0f;
  }

  __device__ __forceinline__ void read(Place id, int first, float (&entries)[E]) const {
    const unsigned char* row = table + (unsigned long long)id * stride;
#ifdef ON_CPU
    const float own = scale(row, first);
    if constexpr (E % 8 == 0) {
#pragma GCC unroll 16
      for (int j = 0; j < E; j += 8) {
        const Codes codes = unpack<BITS>(row + (first + j) * BITS / 8, 0);
        const Floats level = pick<BITS>(levels, codes);
        const Floats values = SCALING == PLAIN ? level : level * own;
        memcpy(entries + j, &values, sizeof values);
      }
    } else {
      for (int j = 0; j < E; ++j) {
        const float level = levels[code_at<BITS>(row, (first + j) * BITS)];
        entries[j] = SCALING == PLAIN ? level : level * own;
      }
    }
#else
    const unsigned long long codes = load_codes<E, BITS>(row, first);
    const float factor = scale(row, first);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const float level = __ldg(levels + (codes >> (j * BITS) & ((1u << BITS) - 1)));
      entries[j] = SCALING == PLAIN ? level : __fmul_rn(level, factor);
    }
#endif
  }
};
