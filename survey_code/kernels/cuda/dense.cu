// Rows of numbers: float32, float16 or bfloat16.

#include "numbers.cuh"
#include "pooling.cuh"

template <typename Number, int E, int ROWS_AHEAD = 8> struct Dense {
  static constexpr int ENTRIES = E, AHEAD = ROWS_AHEAD;
  static constexpr int BYTES = E * sizeof(Number);

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

  static __device__ __forceinline__ Piece read(const unsigned char* row, int piece,
                                               int) {
    Piece found;
    found.numbers = Word<BYTES>::read(row + piece * BYTES);
    return found;
  }
};
