// Reading and pooling rows that several arrays make together.
//
// Every such format is a small class that tells how one thread gets E entries of a
// row: `find` turns an id into places (digits, offsets, codes), `read` fetches the
// entries from there and combines them. What a layout consists of, addresses and
// sizes, lies in one list of 64-bit numbers, `fields`.

#include "pooling.cuh"

constexpr int SUM = 0, MEAN = 1, MAX = 2;

__device__ __forceinline__ long long field(const long long* fields, int k) {
  return __ldg(fields + k);
}

template <class T>
__device__ __forceinline__ const T* array(const long long* fields, int k) {
  return reinterpret_cast<const T*>(field(fields, k));
}

// E numbers that lie side by side; rows begin at multiples of E numbers.
template <int E>
__device__ __forceinline__ void load_floats(const float* place, float (&values)[E]) {
  if constexpr (E == 4) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(place));
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  } else if constexpr (E == 2) {
    const float2 two = __ldg(reinterpret_cast<const float2*>(place));
    values[0] = two.x, values[1] = two.y;
  } else {
    values[0] = __ldg(place);
  }
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

// The hash of survey_code.layouts.hashed.mix_ids.
__device__ __forceinline__ unsigned long long mix(unsigned long long id,
                                                  unsigned long long first,
                                                  unsigned long long second) {
  unsigned long long mixed = id * first;
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

// How a digit is taken from an id: six fields, see take_digits.
constexpr int DIGIT_FIELDS = 6;

__device__ __forceinline__ long long take_digit(const long long* fields,
                                                long long id) {
  unsigned long long value = id;
  const unsigned long long first = field(fields, 0);
  if (first) value = mix(value, first, field(fields, 1));
  const unsigned long long divisor = field(fields, 2), modulus = field(fields, 4);
  if (divisor != 1) value = divide(value, divisor, field(fields, 3));
  return value - divide(value, modulus, field(fields, 5)) * modulus;
}

template <class Format, typename Id>
__global__ void read_composed(const long long* fields, long long rows, int dim,
                              const Id* __restrict__ ids, long long count,
                              float* __restrict__ out, unsigned* flag) {
  constexpr int E = Format::ENTRIES;
  const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (place >= count) return;
  const long long id = ids[place];
  if (!is_row(id, rows)) {
    report(flag, BAD_ID);
    return;
  }
  const Format format(fields, dim);
  const auto found = format.find(id);
  for (int first = threadIdx.x * E; first < dim; first += blockDim.x * E) {
    float values[E];
    format.read(found, first, values);
    write_piece<E>(out + place * dim + first, values, dim - first, dim);
  }
}

template <class Format, typename Id>
__global__ void pool_composed(const long long* fields, long long rows, int dim,
                              const Id* __restrict__ ids, long long count,
                              const long long* __restrict__ offsets, long long bags,
                              const float* __restrict__ weights, int mode,
                              float* __restrict__ out, unsigned* flag) {
  constexpr int E = Format::ENTRIES, AHEAD = 4;
  const long long bag = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (bag >= bags) return;
  long long begin, end;
  find_bag(offsets, bag, bags, count, begin, end, flag);
  const Format format(fields, dim);
  for (int first = threadIdx.x * E; first < dim; first += blockDim.x * E) {
    float pooled[E] = {};
    for (long long start = begin; start < end; start += AHEAD) {
      float values[AHEAD][E], factors[AHEAD];
      bool wanted[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        wanted[k] = start + k < end;
        if (!wanted[k]) continue;
        const long long id = ids[start + k];
        if (!is_row(id, rows)) {
          report(flag, BAD_ID);
          wanted[k] = false;
        } else {
          factors[k] = weights ? weights[start + k] : 1.0f;
          format.read(format.find(id), first, values[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        if (!wanted[k]) continue;
#pragma unroll
        for (int j = 0; j < E; ++j) {
          if (mode != MAX) pooled[j] = fmaf(factors[k], values[k][j], pooled[j]);
          else if (start + k == begin) pooled[j] = values[k][j];
          else pooled[j] = fmaxf(pooled[j], values[k][j]);
        }
      }
    }
    const float scale = mode == MEAN && end > begin ? 1.0f / (end - begin) : 1.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) pooled[j] *= scale;
    write_piece<E>(out + bag * dim + first, pooled, dim - first, dim);
  }
}
