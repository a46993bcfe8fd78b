// Digits of hashed ids.

#pragma once

#include "reading.cuh"

// A digit of an id; see survey_code.layouts.hashed.take_digits.
__device__ __forceinline__ long long take_digit(const Digit& how, long long id) {
  unsigned long long value = id;
  if (how.first) value = mix(value, how.first, how.second, how.addend);
  if (how.divisor != 1) value = divide(value, how.divisor, how.divisor_inverse);
  return value - divide(value, how.modulus, how.modulus_inverse) * how.modulus;
}

// A digit that stands in memory.
__device__ __forceinline__ Digit load_digit(const Digit* place) {
  Digit how;
  long long* numbers = reinterpret_cast<long long*>(&how);
#pragma unroll
  for (int k = 0; k < sizeof(Digit) / 8; ++k)
    numbers[k] = __ldg(reinterpret_cast<const long long*>(place) + k);
  return how;
}
