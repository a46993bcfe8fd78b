// Rows of numbers: float32, float16 or bfloat16.

#pragma once

#include "reading.cuh"

template <int E, typename Number, int ROWS_AHEAD = 4> struct Dense {
  static constexpr int ENTRIES = E, AHEAD = ROWS_AHEAD, BYTES = E * sizeof(Number);
  using Fields = DenseFields;
  using Place = unsigned;
  const unsigned char* table;
  unsigned stride;    // bytes from row to row

  __device__ __forceinline__ Dense(const Fields& f, int)
      : table(array<unsigned char>(f.table)), stride(f.stride) {}

  struct Piece {
    Word<BYTES> numbers;
    __device__ __forceinline__ float value(int j) const {
      return widen(reinterpret_cast<const Number*>(numbers.part)[j]);
    }
  };

  struct Sum {
    float entries[E] = {};
    __device__ __forceinline__ void add(const Piece& row, float factor) {
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] = fmaf(factor, row.value(j), entries[j]);
    }
    __device__ __forceinline__ float value(int j) const { return entries[j]; }
  };

  __device__ __forceinline__ Piece piece(long long id, int number) const {
    return {Word<BYTES>::read(table + id * stride + number * BYTES)};
  }

  __device__ __forceinline__ Place find(long long id) const { return id; }
#ifdef ON_CPU
  __forceinline__ void fetch(Place row) const {
    fetch_bytes(table + (unsigned long long)row * stride, stride);
  }
#endif

  __device__ __forceinline__ void read(Place row, int first, float (&entries)[E]) const {
    const unsigned char* place = table + (unsigned long long)row * stride + first * sizeof(Number);
    if constexpr (sizeof(Number) == 4) {
      load_floats<E>(reinterpret_cast<const float*>(place), entries);
#ifdef ON_CPU
    } else if constexpr (true) {
      widen_all(reinterpret_cast<const Number*>(place), entries);
#endif
    } else {
      const Piece found = {Word<BYTES>::read(place)};
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] = found.value(j);
    }
  }
};
