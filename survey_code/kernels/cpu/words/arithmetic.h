// CUDA's words for arithmetic, in C++; also of the tests that run kernels on a processor.

#pragma once

#include <stdint.h>
#include <string.h>

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
  const uint64_t both = (uint64_t)high << 32 | low;
  unsigned found = 0;
  for (int k = 0; k < 4; ++k)
    found |= (unsigned)(both >> 8 * (select >> 4 * k & 7) & 255) << 8 * k;
  return found;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int k = 0; k < 4; ++k) sum += (a >> 8 * k & 255) * (b >> 8 * k & 255);
  return sum;
}
