// Numbers of 16 bits: g++ has half precision, and the processor its conversion; a
// bfloat16 is the upper half of a float.

#pragma once

#include "arithmetic.h"

struct __half { _Float16 value; };
struct __half2 { __half x, y; };
inline float __half2float(__half half) { return (float)half.value; }
inline float __low2float(__half2 both) { return __half2float(both.x); }
inline float __high2float(__half2 both) { return __half2float(both.y); }
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float((unsigned)value.bits << 16);
}
