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

// Bytes that will be read soon.  Inlined for certain, here and in what calls it: g++
// takes a function that does nothing else for one without effect, and drops the call.
__forceinline__ void fetch_bytes(const unsigned char* place, long long count) {
  const unsigned char* line = place - (uintptr_t)place % 64;
  for (; line < place + count; line += 64) __builtin_prefetch(line);
}

__forceinline__ void fetch_bytes(const void* place, long long count) {
  fetch_bytes(static_cast<const unsigned char*>(place), count);
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

// What `find` will read for an id, fetched before: of a format whose places are stored,
// and not computed from the id.
template <class Format> constexpr bool has_announce(...) { return false; }
template <class Format>
constexpr bool has_announce(decltype(declare<const Format&>().announce(0))*) {
  return true;
}

// What a format inside another will read for an id: its places, or already its row.
template <class Format>
__forceinline__ void announce_row(const Format& format, long long id) {
  if constexpr (has_announce<Format>(nullptr)) format.announce(id);
  else fetch_row(format, format.find(id));
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
inline float widen_number(__nv_bfloat16 number) { return __bfloat162float(number); }
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

// Up to eight bytes as a number; put together in registers, not in memory, from which
// it could not be read at once.
template <int BYTES> __forceinline__ uint64_t load_bytes(const unsigned char* place) {
  if constexpr (BYTES == 0) return 0;
  else if constexpr (BYTES == 1) return *place;
  else if constexpr (BYTES < 4) {
    uint16_t two;
    memcpy(&two, place, 2);
    return two | load_bytes<BYTES - 2>(place + 2) << 16;
  } else if constexpr (BYTES < 8) {
    uint32_t four;
    memcpy(&four, place, 4);
    return four | load_bytes<BYTES - 4>(place + 4) << 32;
  } else {
    uint64_t eight;
    memcpy(&eight, place, 8);
    return eight;
  }
}

// Eight codes of 1 to 8 bits, which begin `start` bits after a place.
template <int BITS>
__forceinline__ Codes unpack(const unsigned char* place, int start) {
  constexpr unsigned B = BITS, MASK = (1u << BITS) - 1;
  uint64_t word = load_bytes<BITS>(place);
  if constexpr (BITS < 8) {
    if (start) word |= (uint64_t)place[BITS] << 8 * BITS;
    word >>= start;
  }
  const unsigned low = word, high = word >> 4 * B;
  if constexpr (BITS <= 4)
    return (Codes{} + low) >> Codes{0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B} & MASK;
  return Codes{low, low, low, low, high, high, high, high} >>
             Codes{0, B, 2 * B, 3 * B, 0, B, 2 * B, 3 * B} & MASK;
}

// One code of 1 to 8 bits, which begins so many bits after a place.  Codes that cross
// bytes are put together of two; where one byte holds all of it, of that one twice.
template <int BITS>
__forceinline__ unsigned code_at(const unsigned char* place, int start) {
  const int shift = start % 8;
  unsigned held = place[start / 8];
  if constexpr (8 % BITS != 0) held |= place[start / 8 + (shift + BITS > 8)] << 8;
  return held >> shift & ((1u << BITS) - 1);
}

// The numbers of a small table that eight codes name: those of a table of eight are
// picked at once.
template <int BITS> __forceinline__ Floats pick(const float* table, Codes codes) {
#ifdef __AVX2__
  if constexpr (BITS <= 4) {
    Floats low = {}, high = {};
    memcpy(&low, table, BITS < 3 ? 4 << BITS : sizeof low);
    low = __builtin_ia32_permvarsf256(low, (Integers)codes);
    if constexpr (BITS < 4) return low;
    memcpy(&high, table + 8, sizeof high);
    high = __builtin_ia32_permvarsf256(high, (Integers)codes);
    const Integers upper = (Integers)(codes << 28) >> 31;    // all ones from 8 on
    return (Floats)(((Integers)low & ~upper) | ((Integers)high & upper));
  }
#endif
  Floats found;
  for (int j = 0; j < 8; ++j) found[j] = table[codes[j]];
  return found;
}

// E numbers that lie side by side, as float32.
template <int E, class Number>
__forceinline__ void widen_all(const Number* place, float (&entries)[E]) {
  for (int j = 0; j < E; ++j) entries[j] = widen_number(place[j]);
}
#ifdef __F16C__
typedef short Halves __attribute__((vector_size(16)));
template <int E>
__forceinline__ void widen_all(const __half* place, float (&entries)[E]) {
  int j = 0;
  for (; j + 8 <= E; j += 8) {
    Halves eight;
    memcpy(&eight, place + j, sizeof eight);
    const Floats wide = __builtin_ia32_vcvtph2ps256(eight);
    memcpy(entries + j, &wide, sizeof wide);
  }
  for (; j < E; ++j) entries[j] = widen_number(place[j]);
}
#endif

// E codes of a row from column `first` on, and what they stand for: code times scale,
// plus bias; or, centred, the code's distance from the middle times scale.  Eight are
// unpacked at once: each takes the word in which it lies, and shifts it.
template <int E, int BITS, bool CENTRED>
__forceinline__ void decode_codes(const unsigned char* row, int first, float scale,
                                  float bias, float (&entries)[E]) {
  constexpr float CENTRE = ((1 << BITS) - 1) * 0.5f;
  const unsigned char* place = row + first * BITS / 8;
  const int start = E * BITS % 8 ? first * BITS % 8 : 0;    // bits before the first
#pragma GCC unroll 16
  for (int j = 0; j + 8 <= E; j += 8) {
    const Codes codes = unpack<BITS>(place + j * BITS / 8, start);
    const Floats numbers = __builtin_convertvector((Integers)codes, Floats);
    const Floats values = CENTRED ? (numbers - CENTRE) * scale : numbers * scale + bias;
    memcpy(entries + j, &values, sizeof values);
  }
  for (int j = E / 8 * 8; j < E; ++j) {
    const float number = code_at<BITS>(place, start + j * BITS);
    entries[j] = CENTRED ? (number - CENTRE) * scale : number * scale + bias;
  }
}
