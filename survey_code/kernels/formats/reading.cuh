// What the kernels of look-ups and bags have in common: places in memory, errors,
// numbers of several types, hashes, searches.
//
// What a kernel is told about a layout is a struct, generated from the description of
// the same name in formats.py: `HashedFields` from `HashedFormat`.  Kernels get it by
// value.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Errors, reported through one word that the caller reads back.
constexpr unsigned BAD_ID = 1, BAD_OFFSET = 2, BAD_END = 4;

constexpr int SUM = 0, MEAN = 1, MAX = 2;

// An array, from its address in a struct of fields.
template <class T> __device__ __forceinline__ const T* array(long long address) {
  return reinterpret_cast<const T*>(address);
}

// Tables do not change while a kernel reads them.
template <class T> __device__ __forceinline__ T load(const void* place) {
  return __ldg(reinterpret_cast<const T*>(place));
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

// Bytes that one thread reads at once, as 32-bit parts.
template <int BYTES> struct Word {
  static constexpr int PARTS = (BYTES + 3) / 4;
  unsigned part[PARTS] = {};

  static __device__ __forceinline__ Word read(const unsigned char* place) {
    Word word;
    if (BYTES == 1) word.part[0] = __ldg(place);
    if (BYTES == 2) word.part[0] = load<unsigned short>(place);
    if (BYTES == 4) word.part[0] = load<unsigned>(place);
    if (BYTES == 8) {
      const uint2 both = load<uint2>(place);
      word.part[0] = both.x, word.part[1 % PARTS] = both.y;
    }
#pragma unroll
    for (int k = 0; k < BYTES / 16; ++k) {
      const uint4 four = load<uint4>(place + 16 * k);
      word.part[4 * k] = four.x, word.part[(4 * k + 1) % PARTS] = four.y;
      word.part[(4 * k + 2) % PARTS] = four.z, word.part[(4 * k + 3) % PARTS] = four.w;
    }
    return word;
  }
};

// E numbers that lie side by side; on a GPU rows begin at multiples of E numbers.
template <int E>
__device__ __forceinline__ void load_floats(const float* place, float (&values)[E]) {
  if constexpr (E == 4) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(place));
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  } else if constexpr (E == 2) {
    const float2 two = __ldg(reinterpret_cast<const float2*>(place));
    values[0] = two.x, values[1] = two.y;
  } else if constexpr (E == 1) {
    values[0] = __ldg(place);
  } else {    // on a processor, any number of them
    for (int j = 0; j < E; ++j) values[j] = place[j];
  }
}

// A number that may stand anywhere, read byte by byte.
template <class Number>
__device__ __forceinline__ float load_bytewise(const unsigned char* place) {
  unsigned char bytes[sizeof(Number)];
#pragma unroll
  for (int k = 0; k < (int)sizeof(Number); ++k) bytes[k] = __ldg(place + k);
  Number number;
  memcpy(&number, bytes, sizeof(Number));
  return widen(number);
}

// E codes of a row of words, low bits first, the first in the lowest bits.  They lie in
// two neighbouring words at most; the second is read only where it belongs to the row.
template <int E, int BITS>
__device__ __forceinline__ unsigned long long load_codes(const unsigned char* row,
                                                         int first) {
  static_assert(31 + E * BITS <= 64, "codes that are read at once lie in two words");
  const int start = first * BITS, shift = start & 31;
  const unsigned* word = reinterpret_cast<const unsigned*>(row) + (start >> 5);
  unsigned long long codes = __ldg(word);
  if (shift + E * BITS > 32) codes |= (unsigned long long)__ldg(word + 1) << 32;
  return codes >> shift;
}

__device__ __forceinline__ void report(unsigned* flag, unsigned what) {
  atomicOr(flag, what);
}

// As an unsigned number, a negative id is beyond every table.
__device__ __forceinline__ bool is_row(long long id, long long rows) {
  return (unsigned long long)id < (unsigned long long)rows;
}

// First place in numbers[low..high), which rise, that is not below `wanted`.
template <typename Number>
__device__ __forceinline__ long long search(const Number* numbers, long long low,
                                            long long high, long long wanted) {
  while (low < high) {
    const long long middle = (low + high) / 2;
    if ((long long)__ldg(numbers + middle) < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The hash of survey_code.hashes.mix_ids.
__device__ __forceinline__ unsigned long long mix(unsigned long long id,
                                                  unsigned long long first,
                                                  unsigned long long second,
                                                  unsigned long long addend) {
  unsigned long long mixed = id * first + addend;
  mixed ^= mixed >> 32;
  mixed *= second;
  mixed ^= mixed >> 29;
  return mixed & 0x7FFFFFFFFFFFFFFFull;
}

// Division by a number whose inverse, floor(2^64 / number), is known: one product
// instead of the hundred cycles of a 64-bit division. It is short by 1 at most.
__device__ __forceinline__ unsigned long long divide(unsigned long long value,
                                                     unsigned long long number,
                                                     unsigned long long inverse) {
  const unsigned long long quotient = __umul64hi(value, inverse);
  return quotient + (value - quotient * number >= number);
}

// What stands where a format could, and there is nothing.
struct Nothing {
  struct Fields { long long unused; };
  struct Place { unsigned unused; };
  __device__ __forceinline__ Nothing(const Fields&, int) {}
  __device__ __forceinline__ Place find(long long) const { return {0}; }
};

// One number of a row, of a format that reads one at a time.
template <class Format>
__device__ __forceinline__ float read_number(const Format& format,
                                             const typename Format::Place& found,
                                             int at) {
  float entries[1];
  format.read(found, at, entries);
  return entries[0];
}
__device__ __forceinline__ float read_number(const Nothing&, const Nothing::Place&, int) {
  return 0.0f;
}
