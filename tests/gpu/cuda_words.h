// CUDA's words in C++, for running a kernel on the processor, thread after thread.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static

struct uint3 { unsigned x, y, z; };
static uint3 threadIdx, blockIdx, blockDim, gridDim;

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T> T __ldg(const T* place) { return *place; }
template <class T> void __stcs(T* place, T value) { *place = value; }
template <class T> T atomicOr(T* place, T value) {
  const T old = *place;
  *place |= value;
  return old;
}
template <class T> T atomicAdd(T* place, T value) {
  const T old = *place;
  *place += value;
  return old;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
  const uint64_t both = (uint64_t)high << 32 | low;
  unsigned found = 0;
  for (int k = 0; k < 4; ++k)
    found |= (unsigned)(both >> 8 * (select >> 4 * k & 7) & 255) << 8 * k;
  return found;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}
using std::fmaf;
using std::fmaxf;
inline int min(int a, int b) { return a < b ? a : b; }

// Half precision: g++ has the type, and the processor the conversion.
struct __half { _Float16 value; };
struct __half2 { __half x, y; };
inline float __half2float(__half half) { return (float)half.value; }
inline float __low2float(__half2 both) { return __half2float(both.x); }
inline float __high2float(__half2 both) { return __half2float(both.y); }
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float((unsigned)value.bits << 16);
}

template <class... Arguments>
void run_threads(void (*kernel)(Arguments...), const int (&sizes)[6],
                 Arguments... arguments) {
  gridDim = {(unsigned)sizes[0], (unsigned)sizes[1], (unsigned)sizes[2]};
  blockDim = {(unsigned)sizes[3], (unsigned)sizes[4], (unsigned)sizes[5]};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
          for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
              kernel(arguments...);
}

template <class Kernel> struct Launcher;
template <class... Arguments> struct Launcher<void (*)(Arguments...)> {
  template <void (*kernel)(Arguments...)>
  static void launch(int a, int b, int c, int d, int e, int f,
                     Arguments... arguments) {
    run_threads(kernel, {a, b, c, d, e, f}, arguments...);
  }
};

// `launch(grid, block, the kernel's own arguments ...)`, with C's calling convention.
#define BARE(...) __VA_ARGS__
#define LAUNCHER(kernel)                                                    \
  static auto chosen = Launcher<decltype(&BARE kernel)>::template launch<&BARE kernel>; \
  extern "C" void* launch_address() { return (void*)chosen; }
