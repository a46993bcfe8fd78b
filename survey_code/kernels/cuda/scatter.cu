// Training of ROBE: rows of blocks that begin anywhere in one array, and the way back,
// which adds the rows' gradients up where they were read.

#include "reading.cuh"

// Where the blocks of a row begin, and their signs; survey_code.layouts.flat says how.
struct Runs {
  int length;                          // of a block
  unsigned long long places, inverse;  // where one may begin, and for `divide`
  unsigned long long first, second, addend;         // of the places' hash
  unsigned long long sign_first, sign_second, sign_addend;  // of the signs' (0: none)

  static __device__ __forceinline__ unsigned long long key(long long id, int block) {
    return id + block * 0x9E3779B97F4A7C15ull;
  }

  __device__ __forceinline__ long long find(long long id, int column) const {
    const int block = column / length;
    const unsigned long long mixed = mix(key(id, block), first, second, addend);
    const unsigned long long start = mixed - divide(mixed, places, inverse) * places;
    return start + (column - block * length);
  }

  template <typename Number>
  __device__ __forceinline__ Number turn(long long id, int column, Number value) const {
    if (!sign_first) return value;
    const unsigned long long mixed =
        mix(key(id, column / length), sign_first, sign_second, sign_addend);
    return mixed >> 31 & 1 ? -value : value;
  }
};

#define RUNS                                                                      \
  int length, unsigned long long places, unsigned long long inverse,              \
      unsigned long long first, unsigned long long second,                        \
      unsigned long long addend, unsigned long long sign_first,                   \
      unsigned long long sign_second, unsigned long long sign_addend

// rows[., column] = sign * values[find(id, column)]
template <typename Id, typename Number>
__global__ void gather_blocks(const Id* __restrict__ ids, long long count, int dim, RUNS,
                              const Number* __restrict__ values,
                              Number* __restrict__ rows) {
  const Runs runs = {length,     places,      inverse,    first, second, addend,
                     sign_first, sign_second, sign_addend};
  const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (place >= count) return;
  const long long id = ids[place];
  for (int column = threadIdx.x; column < dim; column += blockDim.x)
    rows[place * dim + column] =
        runs.turn(id, column, __ldg(values + runs.find(id, column)));
}

// gradient[find(id, column)] += sign * rows[., column]
template <typename Id, typename Number>
__global__ void scatter_blocks(const Id* __restrict__ ids, long long count, int dim, RUNS,
                               const Number* __restrict__ rows,
                               Number* __restrict__ gradient) {
  const Runs runs = {length,     places,      inverse,    first, second, addend,
                     sign_first, sign_second, sign_addend};
  const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (place >= count) return;
  const long long id = ids[place];
  for (int column = threadIdx.x; column < dim; column += blockDim.x)
    atomicAdd(gradient + runs.find(id, column),
              runs.turn(id, column, rows[place * dim + column]));
}
