// CUDA's words in C++, for running a kernel on the processor.
//
// The threads of a block take turns, one at a time: a thread runs until it ends or
// until it needs what others hold (`__shfl_sync`, `__syncthreads`) and goes on once
// they have come to the same place.

#include <link.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <arithmetic.h>
#include <halves.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local    // see "Shared memory" below

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
template <class T, class V> T atomicAdd(T* place, V value) {
  const T old = *place;
  *place += value;
  return old;
}
using std::fmaf;
using std::fmaxf;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

// Shared memory.  A GPU clears none, so it is filled before each block with bytes that
// are NaN as floats and -1 as integers.
//
// Arrays whose size stands in the source are thread-local for g++: nothing else of a
// kernel's library is, so that they stand together in a place that can be asked for.
// (g++ ignores sections for arrays in templates.)
//
// `extern __shared__ T own[]` is rewritten by conftest.py: `own` points here.  Behind
// the bytes that a launch asked for, and before them, others are guarded.
constexpr int GARBAGE = 0xff;
constexpr size_t GUARD = 4096, MOST_SHARED = 227 << 10;
alignas(1024) static char shared_room[GUARD + MOST_SHARED + GUARD];
static char* const dynamic_shared = shared_room + GUARD;
static size_t dynamic_size, static_size;
static thread_local char first_shared;    // so that there always is such a place
static char* static_shared;

inline int find_static(dl_phdr_info* library, size_t, void*) {
  char* const start = (char*)library->dlpi_tls_data;
  for (int k = 0; start && k < library->dlpi_phnum; ++k) {
    const size_t size = library->dlpi_phdr[k].p_memsz;
    if (library->dlpi_phdr[k].p_type != PT_TLS) continue;
    if (&first_shared < start || &first_shared >= start + size) continue;
    static_shared = start, static_size = size;
    return 1;
  }
  return 0;
}

inline void find_shared(size_t asked) {
  first_shared = 1;    // the place is made when it is first used
  dl_iterate_phdr(find_static, nullptr);
  dynamic_size = asked;
  // All of it, so that what lies even further behind reads as NaN, too.
  memset(shared_room, GARBAGE, asked ? sizeof shared_room : 2 * GUARD);
}

inline void fill_shared() {
  memset(static_shared, GARBAGE, static_size);
  memset(dynamic_shared, GARBAGE, dynamic_size);
}

inline bool is_untouched(const char* guard) {
  size_t k = 0;
  while (k < GUARD && (unsigned char)guard[k] == GARBAGE) ++k;
  return k == GUARD;
}

// What a launch did wrong; empty if nothing.
static char fault[400];

inline void check_shared() {
  if (is_untouched(shared_room) && is_untouched(dynamic_shared + dynamic_size)) return;
  snprintf(fault, sizeof fault,
           "block (%u, %u, %u) wrote beside the %zu bytes of its shared memory",
           blockIdx.x, blockIdx.y, blockIdx.z, dynamic_size);
}

// One thread of the block that runs: where it stands, and what it shows the others.
// No containers: their code would be most of what is compiled for a kernel.
struct Thread {
  ucontext_t state;
  uint3 index;
  bool ended;
  int line;                  // of the barrier where it waits; 0: of none
  const char* file;
  long long shown;           // how often it has shown something
  uint64_t values[2];        // the last two things
  char stack[1 << 16];
};
static ucontext_t scheduler;
static Thread* threads;
static size_t running, block_size, room;
static bool moved;           // whether a thread did anything but wait
static void (*body)(void*);  // a call of the kernel, with what it is called with
static void* given;

inline void enter() {
  moved = true;
  body(given);
  threads[running].ended = true;
}

// The other threads go on, until it is this one's turn again.
inline void pass() {
  Thread& own = threads[running];
  swapcontext(&own.state, &scheduler);
  threadIdx = own.index;
}

// `settle` opens the barrier.
#define __syncthreads() wait_at_barrier(__LINE__, __FILE__)
inline void wait_at_barrier(int line, const char* file) {
  threads[running].line = line, threads[running].file = file;
  pass();
  moved = true;
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
  moved = true;
  T taken;
  std::memcpy(&taken, &threads[warp + segment + from % width].values[turn % 2],
              sizeof(T));
  return taken;
}

inline void make_threads() {
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
        thread.line = 0;
        thread.shown = 0;
        getcontext(&thread.state);
        thread.state.uc_stack.ss_sp = thread.stack;
        thread.state.uc_stack.ss_size = sizeof thread.stack;
        thread.state.uc_link = &scheduler;
        makecontext(&thread.state, enter, 0);
      }
}

// When every thread has ended or waits: whether the block is at its end.  A barrier is
// opened if all threads have come to it, those that have ended included: a GPU may let
// the others go on without these, but what they should have done is missing.
inline bool settle() {
  size_t ended = 0, here = 0, elsewhere = 0;
  const Thread* first = nullptr;    // at a barrier
  for (size_t k = 0; k < block_size; ++k) {
    const Thread& thread = threads[k];
    ended += thread.ended;
    if (!thread.line) continue;
    if (!first) first = &thread;
    ++(thread.line == first->line ? here : elsewhere);
  }
  if (here == block_size)
    for (size_t k = 0; k < block_size; ++k) threads[k].line = 0;
  else if (ended < block_size)
    snprintf(fault, sizeof fault,
             "block (%u, %u, %u) stands still: of %zu threads %zu wait at the barrier "
             "in line %d of %s, %zu at others, %zu for a shuffle; %zu have ended",
             blockIdx.x, blockIdx.y, blockIdx.z, block_size, here,
             first ? first->line : 0, first ? first->file : "the source", elsewhere,
             block_size - here - elsewhere - ended, ended);
  return here < block_size;
}

inline void run_block() {
  make_threads();
  fill_shared();
  // Upwards in one block, downwards in the next: what a thread may not expect of
  // those before it is then missed in one of them.
  const bool upwards = (blockIdx.x + blockIdx.y + blockIdx.z) % 2 == 0;
  do {
    moved = false;
    for (size_t k = 0; k < block_size; ++k) {
      running = upwards ? k : block_size - 1 - k;
      Thread& thread = threads[running];
      if (thread.ended || thread.line) continue;
      threadIdx = thread.index;
      swapcontext(&scheduler, &thread.state);
    }
  } while (moved || !settle());
  if (!*fault) check_shared();
}

template <class... Arguments>
const char* run_threads(void (*kernel)(Arguments...), const int (&sizes)[7],
                        Arguments... arguments) {
  gridDim = {(unsigned)sizes[0], (unsigned)sizes[1], (unsigned)sizes[2]};
  blockDim = {(unsigned)sizes[3], (unsigned)sizes[4], (unsigned)sizes[5]};
  auto call = [&] { kernel(arguments...); };
  given = &call;
  body = [](void* place) { (*(decltype(call)*)place)(); };
  bad_loads = 0, *fault = 0;
  find_shared(sizes[6]);
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        run_block();
        if (*fault) return fault;
      }
  if (bad_loads) snprintf(fault, sizeof fault, "read from where nothing is");
  return fault;
}

template <class Kernel> struct Launcher;
template <class... Arguments> struct Launcher<void (*)(Arguments...)> {
  template <void (*kernel)(Arguments...)>
  static const char* launch(int a, int b, int c, int d, int e, int f, int shared,
                            Arguments... arguments) {
    return run_threads(kernel, {a, b, c, d, e, f, shared}, arguments...);
  }

  // The same with its arguments in one piece of memory, as a driver takes them.
  template <void (*kernel)(Arguments...)> struct Packed {
    const char* fault;
    Packed(const int (&sizes)[7], Arguments... arguments)
        : fault(run_threads(kernel, sizes, arguments...)) {}
  };
  template <class T> static T next(const char* memory, size_t& at) {
    at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
    T taken;
    memcpy((void*)&taken, memory + at, sizeof(T));
    at += sizeof(T);
    return taken;
  }
  template <void (*kernel)(Arguments...)>
  static const char* launch_packed(int a, int b, int c, int d, int e, int f, int shared,
                                   const char* memory, size_t size) {
    size_t at = 0;
    const int sizes[7] = {a, b, c, d, e, f, shared};
    const Packed<kernel> done{sizes, next<Arguments>(memory, at)...};
    if (at == size) return done.fault;
    snprintf(fault, sizeof fault, "%zu bytes of arguments, expected %zu", size, at);
    return fault;
  }
};

// `launch(grid, block, bytes of shared memory, the kernel's own arguments ...)`, with
// C's calling convention; it returns what went wrong.
#define BARE(...) __VA_ARGS__
#define LAUNCHER(kernel)                                                    \
  using Chosen = Launcher<decltype(&BARE kernel)>;                          \
  static auto chosen = Chosen::template launch<&BARE kernel>;               \
  static auto packed = Chosen::template launch_packed<&BARE kernel>;        \
  extern "C" void* launch_address() { return (void*)chosen; }               \
  extern "C" void* packed_address() { return (void*)packed; }
