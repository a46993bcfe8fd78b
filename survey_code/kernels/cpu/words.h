// CUDA's words in C++, so that the headers by which a GPU reads rows also serve a
// processor, and what a processor alone does there: fetching ahead, unpacking codes.

#pragma once

// Of C alone: a compiler needs no C++ library for this.
#include "words/arithmetic.h"
#include "words/halves.h"

#define ON_CPU
#define __device__
#define __forceinline__ inline __attribute__((always_inline))

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Rows of an odd width begin anywhere.
template <class T> __forceinline__ T __ldg(const T* place) {
  T value;
  memcpy(&value, static_cast<const void*>(place), sizeof(T));
  return value;
}
inline void atomicOr(unsigned* place, unsigned value) { *place |= value; }
#define fmaf __builtin_fmaf
#define fmaxf __builtin_fmaxf

// Bytes that will be read soon.
inline void fetch_bytes(const unsigned char* place, long long count) {
  const unsigned char* line = place - (uintptr_t)place % 64;
  for (; line < place + count; line += 64) __builtin_prefetch(line);
}

template <class T> T&& declare();    // some T, where only its type matters

// The same of a row, of a format that knows where its rows are.
template <class Format, class Place> constexpr bool has_fetch(...) { return false; }
template <class Format, class Place>
constexpr bool has_fetch(
    decltype(declare<const Format&>().fetch(declare<const Place&>()))*) {
  return true;
}
template <class Format, class Place>
__forceinline__ void fetch_row(const Format& format, const Place& found) {
  if constexpr (has_fetch<Format, Place>(nullptr)) format.fetch(found);
}

// Whether what a row lacks is 0, so that bags add what it has.
template <class Format> constexpr bool adds(...) { return false; }
template <class Format> constexpr bool adds(decltype(Format::ADDS)*) {
  return Format::ADDS;
}

inline unsigned add_bytes(const unsigned char* eight) {
  uint64_t bytes;
  memcpy(&bytes, eight, 8);
  constexpr uint64_t EVEN = 0x00ff00ff00ff00ffull;
  const uint64_t pairs = (bytes & EVEN) + (bytes >> 8 & EVEN);
  return pairs * 0x0001000100010001ull >> 48;
}

inline float widen_number(float number) { return number; }
inline float widen_number(__half number) { return __half2float(number); }
template <class Number> __forceinline__ float load_number(const unsigned char* place) {
  Number number;
  memcpy(&number, place, sizeof(Number));
  return widen_number(number);
}

// Numbers that one instruction works on, and sums of products, rounded once, as a
// GPU's fmaf.
typedef unsigned Codes __attribute__((vector_size(32)));
typedef int Integers __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
typedef float Quad __attribute__((vector_size(16)));

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif
__forceinline__ Floats add_product(Floats factor, Floats row, Floats sum) {
#if __has_builtin(__builtin_elementwise_fma)
  return __builtin_elementwise_fma(factor, row, sum);
#elif defined(__FMA__)
  return __builtin_ia32_vfmaddps256(factor, row, sum);
#else
  for (int j = 0; j < 8; ++j) sum[j] = fmaf(factor[j], row[j], sum[j]);
  return sum;
#endif
}
__forceinline__ Quad add_product(Quad factor, Quad row, Quad sum) {
#if __has_builtin(__builtin_elementwise_fma)
  return __builtin_elementwise_fma(factor, row, sum);
#elif defined(__FMA__)
  return __builtin_ia32_vfmaddps(factor, row, sum);
#else
  for (int j = 0; j < 4; ++j) sum[j] = fmaf(factor[j], row[j], sum[j]);
  return sum;
#endif
}
template <class Vector> __forceinline__ Vector spread(float value) {
  if constexpr (sizeof(Vector) == 16) return Vector{value, value, value, value};
  else return Vector{value, value, value, value, value, value, value, value};
}
template <class Vector> __forceinline__ Vector load_vector(const float* place) {
  Vector found;
  memcpy(&found, place, sizeof found);
  return found;
}

// Entries that are added up, times a factor; rounded twice.
template <int E>
__forceinline__ void add_scaled(float factor, const float (&row)[E], float (&sums)[E]) {
  if constexpr (E % 8 == 0) {
#pragma GCC unroll 16
    for (int j = 0; j < E; j += 8) {
      const Floats sum = load_vector<Floats>(sums + j) + factor * load_vector<Floats>(row + j);
      memcpy(sums + j, &sum, sizeof sum);
    }
  } else {
    for (int j = 0; j < E; ++j) sums[j] += factor * row[j];
  }
}

// E codes of a row from column `first` on, and what they stand for: code times scale,
// plus bias; or, centred, the code's distance from the middle times scale.  Eight are
// unpacked at once: each takes the word in which it lies, and shifts it.
template <int E, int BITS, bool CENTRED>
__forceinline__ void decode_codes(const unsigned char* row, int first, float scale,
                                  float bias, float (&entries)[E]) {
  constexpr float CENTRE = ((1 << BITS) - 1) * 0.5f;
  constexpr unsigned MASK = (1u << BITS) - 1;
  const unsigned char* place = row + first * BITS / 8;
  const int start = E * BITS % 8 ? first * BITS % 8 : 0;    // bits before the first
#pragma GCC unroll 16
  for (int j = 0; j + 8 <= E; j += 8) {
    Codes codes;
    if constexpr (BITS == 8) {
      unsigned low, high;
      memcpy(&low, place + j, 4), memcpy(&high, place + j + 4, 4);
      codes = Codes{low, low, low, low, high, high, high, high};
      codes = codes >> Codes{0, 8, 16, 24, 0, 8, 16, 24} & MASK;
    } else {
      constexpr unsigned B = BITS;
      uint64_t word = 0;
      memcpy(&word, place + j * BITS / 8, BITS);
      if (start) word |= (uint64_t)place[j * BITS / 8 + BITS] << 8 * BITS;
      codes = (Codes{} + unsigned(word >> start)) >>
              Codes{0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B} & MASK;
    }
    const Floats numbers = __builtin_convertvector((Integers)codes, Floats);
    const Floats values = CENTRED ? (numbers - CENTRE) * scale : numbers * scale + bias;
    memcpy(entries + j, &values, sizeof values);
  }
  for (int j = E / 8 * 8; j < E; ++j) {
    const int at = start + j * BITS;
    const float number = place[at / 8] >> at % 8 & MASK;
    entries[j] = CENTRED ? (number - CENTRE) * scale : number * scale + bias;
  }
}
