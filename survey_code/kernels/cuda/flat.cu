// ROBE: blocks of a row lie anywhere in one array; and the way back, which adds the
// rows' gradients up where they were read.

#include "composed.cuh"

// Fields: values, places where a block may begin and their inverse, block length,
// two multipliers of the places, two of the signs (0: none).
struct Blocks {
  const long long* fields;
  int length;

  __device__ __forceinline__ explicit Blocks(const long long* f)
      : fields(f), length(field(f, 3)) {}

  static __device__ __forceinline__ unsigned long long shift(long long id, int block) {
    return id + block * 0x9E3779B97F4A7C15ull;
  }

  __device__ __forceinline__ long long start(long long id, int block) const {
    const unsigned long long mixed =
        mix(shift(id, block), field(fields, 4), field(fields, 5));
    const unsigned long long places = field(fields, 1);
    return mixed - divide(mixed, places, field(fields, 2)) * places;
  }

  __device__ __forceinline__ float sign(long long id, int block) const {
    const unsigned long long first = field(fields, 6);
    if (!first) return 1.0f;
    return mix(shift(id, block), first, field(fields, 7)) >> 31 & 1 ? -1.0f : 1.0f;
  }
};

// Entries values[start ..): blocks are a multiple of E long, so that a thread's
// entries lie in one.  Four that begin anywhere lie in two quads, which are read whole.
template <int E>
__device__ __forceinline__ void read_block(const float* values, unsigned long long start,
                                           float sign, int left, float (&entries)[E]) {
  if constexpr (E == 4) {
    const int shift = start % 4;
    const float* quad = values + (start - shift);
    float near[8];
    load_floats<4>(quad, reinterpret_cast<float(&)[4]>(near[0]));
    load_floats<4>(quad + (shift ? 4 : 0), reinterpret_cast<float(&)[4]>(near[4]));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float low = shift & 1 ? near[j + 1] : near[j];
      const float high = shift & 1 ? near[(j + 3) % 8] : near[j + 2];
      entries[j] = sign * (shift & 2 ? high : low);
    }
  } else {
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = j < left ? sign * __ldg(values + start + j) : 0.0f;
  }
}

// Rows of many blocks, each found where it is read.
template <int E> struct Flat {
  static constexpr int ENTRIES = E, AHEAD = 2;
  const float* values;
  Blocks blocks;
  int dim;

  __device__ __forceinline__ Flat(const long long* f, int dim)
      : values(array<float>(f, 0)), blocks(f), dim(dim) {}

  __device__ __forceinline__ long long find(long long id) const { return id; }

  __device__ __forceinline__ void read(long long id, int first,
                                       float (&entries)[E]) const {
    const int block = first / blocks.length;
    const long long start = blocks.start(id, block) + first - block * blocks.length;
    read_block<E>(values, start, blocks.sign(id, block), dim - first, entries);
  }
};

// Rows of a few blocks, all found at once.
template <int E, int COUNT> struct FewBlocks {
  static constexpr int ENTRIES = E, AHEAD = 2;
  const float* values;
  Blocks blocks;
  int dim;

  __device__ __forceinline__ FewBlocks(const long long* f, int dim)
      : values(array<float>(f, 0)), blocks(f), dim(dim) {}

  struct Starts {
    unsigned start[COUNT];
    unsigned negative;    // a bit for each block
  };

  __device__ __forceinline__ Starts find(long long id) const {
    Starts found = {};
#pragma unroll
    for (int block = 0; block < COUNT; ++block) {
      found.start[block] = blocks.start(id, block);
      found.negative |= unsigned(blocks.sign(id, block) < 0.0f) << block;
    }
    return found;
  }

  __device__ __forceinline__ void read(const Starts& found, int first,
                                       float (&entries)[E]) const {
    const int block = first / blocks.length;
    unsigned start = found.start[0];
#pragma unroll
    for (int k = 1; k < COUNT; ++k)
      if (k == block) start = found.start[k];
    const float sign = found.negative >> block & 1 ? -1.0f : 1.0f;
    const unsigned long long from = (unsigned long long)start + first - block * blocks.length;
    read_block<E>(values, from, sign, dim - first, entries);
  }
};

// gradient[start(id, block) + j] += sign * rows[., block * length + j]
template <typename Id>
__global__ void scatter_blocks(const long long* fields, long long rows, int dim,
                               const Id* __restrict__ ids, long long count,
                               const float* __restrict__ gradients,
                               float* __restrict__ out, unsigned* flag) {
  const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (place >= count) return;
  const long long id = ids[place];
  if (!is_row(id, rows)) {
    report(flag, BAD_ID);
    return;
  }
  const Blocks blocks(fields);
  for (int column = threadIdx.x; column < dim; column += blockDim.x) {
    const int block = column / blocks.length;
    const long long target = blocks.start(id, block) + column - block * blocks.length;
    atomicAdd(out + target, blocks.sign(id, block) * gradients[place * dim + column]);
  }
}
