// Tensor trains of up to three cores: an entry of row i is
//   sum over a, b of  S1[a] S2[a, b] S3[b],
// where each core's slice is picked by a digit of i and a digit of the column.

#include "composed.cuh"

// Fields: for each core its address, rows, columns / step, left rank / step, right
// rank, step; then cached rows, their ids, how many.
constexpr int CORE_FIELDS = 6;

struct Core {
  const float* slice;      // of this row: [left / step][columns / step][right]
  int columns, left, right, step;

  __device__ __forceinline__ Core(const long long* f, long long digit)
      : columns(field(f, 2)), left(field(f, 3)), right(field(f, 4)), step(field(f, 5)) {
    slice = array<float>(f, 0) + digit * left * columns * right;
  }
  // With a step t the first left / t entries of the state meet the first columns / t
  // columns, and so on: a semi-tensor product.
  __device__ __forceinline__ int part(int column) const { return column / columns; }
  __device__ __forceinline__ float entry(int a, int column, int b) const {
    return __ldg(slice + (a * columns + column % columns) * right + b);
  }
};

// ALIGNED: the parts of the second core's right rank are multiples of 4.
template <int E, typename Key, bool ALIGNED> struct TensorTrain {
  static constexpr int ENTRIES = E, AHEAD = 1;
  static constexpr int B = 16;    // entries of the state that a thread holds at once
  const long long* fields;
  int dim;

  __device__ __forceinline__ TensorTrain(const long long* f, int dim)
      : fields(f), dim(dim) {}

  struct Digits {
    unsigned digit[3];
    unsigned cached;    // row among the cached ones, or NONE
  };
  static constexpr unsigned NONE = ~0u;

  __device__ __forceinline__ Digits find(long long id) const {
    Digits found;
    const unsigned long long second = field(fields, CORE_FIELDS + 1);
    const unsigned long long third = field(fields, 2 * CORE_FIELDS + 1);
    const unsigned long long rest = id / third;
    found.digit[2] = id - rest * third;
    found.digit[1] = rest % second;
    found.digit[0] = rest / second;
    found.cached = NONE;
    const Key* keys = array<Key>(fields, 3 * CORE_FIELDS + 1);
    if (keys) {
      const long long count = field(fields, 3 * CORE_FIELDS + 2);
      const long long at = search(keys, 0, count, id);
      if (at < count && keys[at] == id) found.cached = at;
    }
    return found;
  }

  __device__ __forceinline__ void read(const Digits& found, int first,
                                       float (&entries)[E]) const {
    if (found.cached != NONE)
      return load_floats<E>(
          array<float>(fields, 3 * CORE_FIELDS) + (long long)found.cached * dim + first,
          entries);
    const Core one(fields, found.digit[0]), two(fields + CORE_FIELDS, found.digit[1]),
        three(fields + 2 * CORE_FIELDS, found.digit[2]);
    // The columns' digits; the E entries of a thread share the first two, and the part
    // of the last core's columns.
    const int last = three.columns * three.step, middle = two.columns * two.step;
    const int c3 = first % last, c2 = first / last % middle, c1 = first / last / middle;
    // Entries of the slices that meet: one row of S1, then rows of S2 and of S3.
    const float* left = one.slice + c1 % one.columns * one.right + two.part(c2) * two.left;
    const float* right =
        two.slice + c2 % two.columns * two.right + three.part(c3) * three.left;
    const float* below = three.slice + c3 % three.columns;
    const int stride = two.columns * two.right;
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = 0.0f;
    for (int begin = 0; begin < three.left; begin += B) {
      float state[B] = {};
      const int many = three.left - begin < B ? three.left - begin : B;
#pragma unroll 4
      for (int a = 0; a < two.left; ++a)
        add_scaled(__ldg(left + a), right + a * stride + begin, many, state);
#pragma unroll
      for (int k = 0; k < B; ++k) {
        if (k >= many) break;
        float entry[E];
        load_floats<E>(below + (begin + k) * three.columns, entry);
#pragma unroll
        for (int j = 0; j < E; ++j) entries[j] = fmaf(state[k], entry[j], entries[j]);
      }
    }
  }

  // state[k] += factor * row[k], for k below `many`.
  static __device__ __forceinline__ void add_scaled(float factor, const float* row,
                                                    int many, float (&state)[B]) {
    if constexpr (ALIGNED) {
#pragma unroll
      for (int quad = 0; quad < B; quad += 4) {
        if (quad >= many) break;
        float four[4];
        load_floats<4>(row + quad, four);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          state[quad + k] = fmaf(factor, four[k], state[quad + k]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < B; ++k)
        if (k < many) state[k] = fmaf(factor, __ldg(row + k), state[k]);
    }
  }
};

// What the loss's gradient by rows says about the three cores, without steps:
//   by S1[a]     sum over the columns of g * S2[a, b] S3[b],
// and so on. A thread adds up one entry of one core's slice for one row; slices of
// rows with the same digit meet in atomicAdd.
template <typename Id>
__global__ void scatter_cores(const long long* fields, long long rows, int dim,
                              const Id* __restrict__ ids, long long count,
                              const float* __restrict__ gradients,
                              float* __restrict__ by_one, float* __restrict__ by_two,
                              float* __restrict__ by_three, unsigned* flag) {
  const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (place >= count) return;
  const long long id = ids[place];
  if (!is_row(id, rows)) {
    report(flag, BAD_ID);
    return;
  }
  const auto found = TensorTrain<1, int, false>(fields, dim).find(id);
  const Core one(fields, found.digit[0]), two(fields + CORE_FIELDS, found.digit[1]),
      three(fields + 2 * CORE_FIELDS, found.digit[2]);
  const float* g = gradients + place * dim;
  const int C1 = one.columns, C2 = two.columns, C3 = three.columns;
  const int R1 = one.right, R2 = two.right;
  const int size1 = C1 * R1, size2 = R1 * C2 * R2, size3 = R2 * C3;

  for (int k = threadIdx.x; k < size1 + size2 + size3; k += blockDim.x) {
    float sum = 0.0f;
    if (k < size1) {
      const int c1 = k / R1, a = k % R1;
      for (int c2 = 0; c2 < C2; ++c2)
        for (int b = 0; b < R2; ++b) {
          float part = 0.0f;
          for (int c3 = 0; c3 < C3; ++c3)
            part = fmaf(g[(c1 * C2 + c2) * C3 + c3], three.entry(b, c3, 0), part);
          sum = fmaf(part, two.entry(a, c2, b), sum);
        }
      atomicAdd(by_one + found.digit[0] * size1 + k, sum);
    } else if (k < size1 + size2) {
      const int at = k - size1, a = at / (C2 * R2), c2 = at / R2 % C2, b = at % R2;
      for (int c1 = 0; c1 < C1; ++c1) {
        float part = 0.0f;
        for (int c3 = 0; c3 < C3; ++c3)
          part = fmaf(g[(c1 * C2 + c2) * C3 + c3], three.entry(b, c3, 0), part);
        sum = fmaf(part, one.entry(0, c1, a), sum);
      }
      atomicAdd(by_two + found.digit[1] * size2 + at, sum);
    } else {
      const int at = k - size1 - size2, b = at / C3, c3 = at % C3;
      for (int c1 = 0; c1 < C1; ++c1)
        for (int c2 = 0; c2 < C2; ++c2) {
          float state = 0.0f;
          for (int a = 0; a < R1; ++a)
            state = fmaf(one.entry(0, c1, a), two.entry(a, c2, b), state);
          sum = fmaf(g[(c1 * C2 + c2) * C3 + c3], state, sum);
        }
      atomicAdd(by_three + found.digit[2] * size3 + at, sum);
    }
  }
}
