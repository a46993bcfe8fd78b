// Numbers of 16 bits: g++ has half precision, and the processor its conversion; a
// bfloat16 is the upper half of a float.

#pragma once

#include "arithmetic.h"

struct __half { _Float16 value; };
struct __half2 { __half x, y; };
inline float __half2float(__half half) { return (float)half.value; }
inline float __low2float(__half2 both) { return __half2float(both.x); }
inline float __high2float(__half2 both) { return __half2float(both.y); }
inline __half __float2half_rn(float value) { return {(_Float16)value}; }
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float((unsigned)value.bits << 16);
}
// To the nearest, of two as near to the even one; NaN stays NaN.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const unsigned bits = __float_as_uint(value);
  if (value != value) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
