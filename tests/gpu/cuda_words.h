// CUDA's words in C++, for running a kernel on the processor.
//
// The threads of a block take turns, one at a time: a thread runs until it ends or
// until it needs what others hold (`__shfl_sync`) and goes on once they have come to
// the same place.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

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

// A compiler leaves out a load whose value nobody uses; a GPU may not, and then it
// faults.  So loads are kept (volatile), and one from next to nowhere is counted.
static volatile long long bad_loads = 0;
template <class T> T __ldg(const T* place) {
  if ((uintptr_t)place < 65536) {
    bad_loads = bad_loads + 1;
    return T();
  }
  T value;
  for (size_t k = 0; k < sizeof(T); ++k)
    ((char*)&value)[k] = ((const volatile char*)place)[k];
  return value;
}
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
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int k = 0; k < 4; ++k) sum += (a >> 8 * k & 255) * (b >> 8 * k & 255);
  return sum;
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

// One thread of the block that runs: where it stands, and what it shows the others.
// No containers: their code would be most of what is compiled for a kernel.
struct Thread {
  ucontext_t state;
  uint3 index;
  bool ended;
  long long shown;           // how often it has shown something
  uint64_t values[2];        // the last two things
  char stack[1 << 16];
};
static ucontext_t scheduler;
static Thread* threads;
static size_t running, block_size, room;
static void (*body)(void*);  // a call of the kernel, with what it is called with
static void* given;

inline void enter() {
  body(given);
  threads[running].ended = true;
}

// The other threads go on, until it is this one's turn again.
inline void pass() {
  Thread& own = threads[running];
  swapcontext(&own.state, &scheduler);
  threadIdx = own.index;
}

template <class T> T __shfl_sync(unsigned members, T value, int from, int width) {
  Thread& own = threads[running];
  const size_t warp = running / 32 * 32, segment = running % 32 / width * width;
  own.values[own.shown % 2] = 0;
  std::memcpy(&own.values[own.shown % 2], &value, sizeof(T));
  const long long turn = own.shown++;
  // A thread overwrites what it showed two turns ago: by then all have read it.
  for (bool waits = true; waits;) {
    waits = false;
    for (size_t k = 0; k < 32 && warp + k < block_size; ++k)
      waits |= (members >> k & 1) && threads[warp + k].shown <= turn;
    if (waits) pass();
  }
  T taken;
  std::memcpy(&taken, &threads[warp + segment + from % width].values[turn % 2],
              sizeof(T));
  return taken;
}

inline void run_block() {
  block_size = blockDim.x * blockDim.y * blockDim.z;
  if (room < block_size) {
    free(threads);
    threads = (Thread*)malloc(block_size * sizeof(Thread));
    room = block_size;
  }
  size_t k = 0;
  for (unsigned z = 0; z < blockDim.z; ++z)
    for (unsigned y = 0; y < blockDim.y; ++y)
      for (unsigned x = 0; x < blockDim.x; ++x, ++k) {
        Thread& thread = threads[k];
        thread.index = {x, y, z};
        thread.ended = false;
        thread.shown = 0;
        getcontext(&thread.state);
        thread.state.uc_stack.ss_sp = thread.stack;
        thread.state.uc_stack.ss_size = sizeof thread.stack;
        thread.state.uc_link = &scheduler;
        makecontext(&thread.state, enter, 0);
      }
  for (bool left = true; left;) {
    left = false;
    for (running = 0; running < block_size; ++running) {
      Thread& thread = threads[running];
      if (thread.ended) continue;
      left = true;
      threadIdx = thread.index;
      swapcontext(&scheduler, &thread.state);
    }
  }
}

template <class... Arguments>
void run_threads(void (*kernel)(Arguments...), const int (&sizes)[6],
                 Arguments... arguments) {
  gridDim = {(unsigned)sizes[0], (unsigned)sizes[1], (unsigned)sizes[2]};
  blockDim = {(unsigned)sizes[3], (unsigned)sizes[4], (unsigned)sizes[5]};
  auto call = [&] { kernel(arguments...); };
  given = &call;
  body = [](void* place) { (*(decltype(call)*)place)(); };
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
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
  extern "C" void* launch_address() { return (void*)chosen; }              \
  extern "C" long long count_bad_loads() { return bad_loads; }
