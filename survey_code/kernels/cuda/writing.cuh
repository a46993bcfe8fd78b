// What the kernels of look-ups and bags do around a row: borders of bags, and rows
// written out in the type that is asked for.

#pragma once

#include <reading.cuh>

// First and last place of a bag; an impossible one is reported and taken as empty.
// There are as many offsets as bags, or one more; or none, and bags of equal length.
template <typename Offset>
__device__ __forceinline__ void find_bag(const Offset* offsets, long long many,
                                         long long bag, long long bags,
                                         long long count, long long& first,
                                         long long& last, unsigned* flag) {
  if (!offsets) {
    first = bag * many, last = first + many;
    return;
  }
  first = offsets[bag];
  last = bag + 1 < many ? offsets[bag + 1] : count;
  if (first < 0 || last > count || first > last || (bag == 0 && first != 0)) {
    report(flag, BAD_OFFSET);
    first = last = 0;
  } else if (bag + 1 == bags && last != count) {
    report(flag, BAD_END);
  }
}

// A number rounded to the type of its place.
__device__ __forceinline__ void put(float& place, float value) { place = value; }
__device__ __forceinline__ void put(__half& place, float value) {
  place = __float2half_rn(value);
}
__device__ __forceinline__ void put(__nv_bfloat16& place, float value) {
  place = __float2bfloat16_rn(value);
}

// Four numbers side by side, in the type that is asked for; STREAM: nobody reads them
// soon, so that they need not stay in the cache.
template <bool STREAM>
__device__ __forceinline__ void put_four(float* target, float a, float b, float c,
                                         float d) {
  const float4 four = make_float4(a, b, c, d);
  if (STREAM) __stcs(reinterpret_cast<float4*>(target), four);
  else *reinterpret_cast<float4*>(target) = four;
}
template <bool STREAM, class Half>
__device__ __forceinline__ void put_four(Half* target, float a, float b, float c,
                                         float d) {
  Half four[4];
  put(four[0], a), put(four[1], b), put(four[2], c), put(four[3], d);
  uint2 both;
  memcpy(&both, four, sizeof both);
  if (STREAM) __stcs(reinterpret_cast<uint2*>(target), both);
  else *reinterpret_cast<uint2*>(target) = both;
}

template <bool STREAM = false, int E, class Out>
__device__ __forceinline__ void write_piece(Out* target, const float (&values)[E],
                                            int left, int dim) {
  if (E % 4 == 0 && dim % 4 == 0 && left >= E) {
#pragma unroll
    for (int j = 0; j < E / 4; ++j)
      put_four<STREAM>(target + 4 * j, values[4 * j], values[(4 * j + 1) % E],
                       values[(4 * j + 2) % E], values[(4 * j + 3) % E]);
  } else {
#pragma unroll
    for (int j = 0; j < E; ++j)
      if (j < left) put(target[j], values[j]);
  }
}
