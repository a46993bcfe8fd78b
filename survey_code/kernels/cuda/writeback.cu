// Rounding by chance, and writing back: the last step of training in few bits.
//
// One thread makes one byte of codes. The coin of an entry depends on the seed, the
// step, the row and the column alone, so that a result does not depend on which
// thread ran first, and NumPy can repeat it; nor do the two threads differ that make
// the two parts of a code which crosses bytes.

// A mixture of 64 bits (splitmix64): every bit of the input moves half of the output.
__device__ __forceinline__ unsigned long long mix(unsigned long long x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// 24 random bits as a number in [0, 1).
__device__ __forceinline__ float draw(unsigned long long key, long long row, int column) {
  const unsigned long long place = (unsigned long long)row << 20 | column;
  return (mix(key ^ mix(place)) >> 40) * 5.9604644775390625e-8f;
}

template <int BITS>
__global__ void write_rows(const float* __restrict__ rows, long long count, int dim,
                           const long long* __restrict__ ids,
                           const float* __restrict__ steps, int low,
                           unsigned long long key, unsigned char* __restrict__ table,
                           int stride) {
  // Codes of which a byte can have a part: the first may begin before it.
  constexpr int IN_BYTE = 8 % BITS ? (8 + 2 * BITS - 2) / BITS : 8 / BITS;
  const int width = (dim * BITS + 7) / 8;
  const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const long long place = thread / width;
  if (place >= count) return;
  const int byte = thread % width;
  const long long id = ids[place];
  const float step = steps[place];
  unsigned packed = 0;
#pragma unroll
  for (int k = 0; k < IN_BYTE; ++k) {
    const int column = byte * 8 / BITS + k;
    const int left = column * BITS - byte * 8;    // where the code begins in the byte
    if (column >= dim || left >= 8) break;
    const float scaled = rows[place * dim + column] / step;
    const float below = floorf(scaled);
    const float rounded = below + (draw(key, id, column) < scaled - below);
    const float code = fminf(fmaxf(rounded - low, 0.0f), (float)((1 << BITS) - 1));
    packed |= left >= 0 ? (unsigned)code << left : (unsigned)code >> -left;
  }
  table[id * stride + byte] = packed;
}
