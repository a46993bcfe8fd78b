// Rows that a network computes: the hashes of an id as the network's input, and what
// follows each of its products.

#include "reading.cuh"

// Values that one hash takes; as in survey_code.layouts.generator.
constexpr unsigned long long BUCKETS = 1000000;

// Hash j of an id, from 0 to BUCKETS - 1.
__device__ __forceinline__ double draw(long long id, int j, unsigned long long first,
                                       unsigned long long second,
                                       unsigned long long addend) {
  return mix(id + j * 0x9E3779B97F4A7C15ull, first, second, addend) % BUCKETS;
}

// Input of the network, one thread for each number, or for each pair of normal ones:
// signals[place, j] from hash j of ids[place]; zeros for an id out of range.
template <bool NORMAL, typename Id>
__global__ void make_codes(const Id* __restrict__ ids, long long count, long long rows,
                           unsigned long long first, unsigned long long second,
                           unsigned long long addend, int codes,
                           float* __restrict__ signals, unsigned* flag) {
  const int width = NORMAL ? codes / 2 : codes;
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count * width) return;
  const long long place = at / width, id = ids[place];
  const int j = at % width;
  float* own = signals + place * codes + j;
  if (!is_row(id, rows)) {
    report(flag, BAD_ID);
    own[0] = 0.0f;
    if (NORMAL) own[width] = 0.0f;
    return;
  }
  const double one = draw(id, j, first, second, addend);
  if (!NORMAL) {
    own[0] = one * (2.0 / (BUCKETS - 1)) - 1.0;
    return;
  }
  // Box and Muller: two uniform numbers make two normal ones.
  const double other = draw(id, width + j, first, second, addend);
  const double radius = sqrt(-2.0 * log((one + 0.5) / BUCKETS));
  const double angle = 6.283185307179586 * ((other + 0.5) / BUCKETS);
  own[0] = radius * cos(angle);
  own[width] = radius * sin(angle);
}

constexpr int NOTHING = 0, RELU = 1, MISH = 2;

// signals[., k] = activation(signals[., k] + bias[k]), in place.
template <int ACTIVATION>
__global__ void add_bias(float* __restrict__ signals, const float* __restrict__ bias,
                         long long size, int width) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= size) return;
  float value = signals[at] + bias[at % width];
  if (ACTIVATION == RELU) value = fmaxf(value, 0.0f);
  // Where e^x is beyond float32, log(1 + e^x) is x.
  if (ACTIVATION == MISH)
    value *= tanhf(value > 20.0f ? value : log1pf(expf(value)));
  signals[at] = value;
}
