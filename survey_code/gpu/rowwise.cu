// Rows of 8, 4, 2 or 1 bit codes q with a scale and a bias: entry = scale * q + bias.
//
// On the GPU a row lies as   codes | scale, bias | padding,   with the codes padded to
// whole pieces and the row to whole 32-byte sectors (whole 64-byte pairs above one):
// memory is fetched in sectors, so a row that straddles one more costs as much as a
// longer row.

#include "pooling.cuh"
#include <cuda_fp16.h>

// The integer q < 2^23 as a float: put it into the mantissa of 2^23, subtract 2^23.
// Two cheap operations; the processor's own conversion runs at a fraction of the rate.
__device__ __forceinline__ float widen(unsigned q) {
  return __uint_as_float(0x4B000000u | q) - 8388608.0f;
}

template <int BITS, int E, bool HALF_PARAMETERS> struct Rowwise {
  static constexpr int ENTRIES = E, AHEAD = E * BITS >= 128 ? 4 : 8;
  static constexpr int BYTES = E * BITS / 8;

  struct Piece {
    Word<BYTES> codes = {};
    float scale = 0.0f, bias = 0.0f;

    __device__ __forceinline__ float code(int j) const {
      constexpr int HELD = sizeof(codes.part[0]) * 8 / BITS;   // codes in a part
      constexpr unsigned MASK = (1u << BITS) - 1;
      return widen((unsigned(codes.part[j / HELD]) >> (j % HELD * BITS)) & MASK);
    }
    // Rounded twice, as NumPy does: a look-up gives the same bits everywhere.
    __device__ __forceinline__ float value(int j) const {
      return __fadd_rn(__fmul_rn(code(j), scale), bias);
    }
  };

  // The biases of a bag are added up once, not once an entry.
  struct Sum {
    float entries[E] = {}, shift = 0.0f;

    __device__ __forceinline__ void add(const Piece& row, float factor) {
      const float scale = factor * row.scale;
      shift = fmaf(factor, row.bias, shift);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] = fmaf(scale, row.code(j), entries[j]);
    }
    __device__ __forceinline__ float value(int j) const { return entries[j] + shift; }
  };

  static __device__ __forceinline__ Piece read(const unsigned char* row, int piece,
                                               int dim) {
    Piece found;
    found.codes = load<Word<BYTES>>(row + piece * BYTES);
    const unsigned char* parameters = row + parameters_at(dim);
    if (HALF_PARAMETERS) {
      const __half2 both = load<__half2>(parameters);
      found.scale = __low2float(both);
      found.bias = __high2float(both);
    } else {
      const float2 both = load<float2>(parameters);
      found.scale = both.x;
      found.bias = both.y;
    }
    return found;
  }

  // Codes are padded to 16 bytes' worth or the next power of two below.
  static __device__ __forceinline__ int parameters_at(int dim) {
    const int bytes = (dim * BITS + 7) / 8;
    return (bytes + 15) / 16 * 16;
  }
};
