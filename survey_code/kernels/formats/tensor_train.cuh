// Tensor trains of up to three cores: an entry of row i is
//   sum over a, b of  S1[a] S2[a, b] S3[b],
// where each core's slice is picked by a digit of i and a digit of the column.

#pragma once

#include "reading.cuh"

struct Core {
  const float* slice;      // of this row: [left / step][columns / step][right]
  int columns, left, right, step;

  __device__ __forceinline__ Core(const TrainCore& f, long long digit)
      : columns(f.columns), left(f.left), right(f.right), step(f.step) {
    slice = array<float>(f.values) + digit * left * columns * right;
  }
  // With a step t the first left / t entries of the state meet the first columns / t
  // columns, and so on: a semi-tensor product.
  __device__ __forceinline__ int part(int column) const { return column / columns; }
};

// ALIGNED: the parts of the second core's right rank are multiples of 4.
template <int E, bool ALIGNED> struct Train {
  static constexpr int ENTRIES = E, AHEAD = 1;
  using Fields = TrainFields;
  static constexpr int B = 16;    // entries of the state that a thread holds at once
  const Fields& f;

  __device__ __forceinline__ Train(const Fields& f, int) : f(f) {}

  struct Place {
    unsigned digit[3];
  };

  __device__ __forceinline__ Place find(long long id) const {
    Place found;
    const unsigned long long second = f.cores[1].rows, third = f.cores[2].rows;
    const unsigned long long rest = id / third;
    found.digit[2] = id - rest * third;
    found.digit[1] = rest % second;
    found.digit[0] = rest / second;
    return found;
  }

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    const Core one(f.cores[0], found.digit[0]), two(f.cores[1], found.digit[1]),
        three(f.cores[2], found.digit[2]);
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
#ifdef ON_CPU
    if (E % 4 == 0 && three.left % B == 0) {
      multiply(left, two.left, right, stride, below, three.columns, three.left, entries);
      return;
    }
#endif
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

#ifdef ON_CPU
  // The same in vectors, where a rank is a multiple of B.  Sums are kept apart and added
  // at the end: a processor begins a product before the last one is done.
  static void multiply(const float* left, int rows, const float* right, int stride,
                       const float* below, int columns, int ranks, float (&entries)[E]) {
    constexpr int QUADS = E % 4 ? 1 : E / 4, APART = 4;
    Quad sums[QUADS][APART] = {};
    for (int begin = 0; begin < ranks; begin += B) {
      Floats low[2] = {}, high[2] = {};
      const float* row = right + begin;
      int a = 0;
      for (; a + 3 < rows; a += 4, row += 4 * (long long)stride) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          const Floats factor = spread<Floats>(left[a + k]);
          const float* own = row + k * (long long)stride;
          low[k % 2] = add_product(factor, load_vector<Floats>(own), low[k % 2]);
          high[k % 2] = add_product(factor, load_vector<Floats>(own + 8), high[k % 2]);
        }
      }
      for (; a < rows; ++a, row += stride) {
        low[0] = add_product(spread<Floats>(left[a]), load_vector<Floats>(row), low[0]);
        high[0] = add_product(spread<Floats>(left[a]), load_vector<Floats>(row + 8), high[0]);
      }
      low[0] += low[1], high[0] += high[1];
      float state[B];
      memcpy(state, low, sizeof low[0]), memcpy(state + 8, high, sizeof high[0]);
      row = below + begin * columns;
#pragma GCC unroll 16
      for (int k = 0; k < B; ++k, row += columns)
#pragma GCC unroll 16
        for (int q = 0; q < QUADS; ++q)
          sums[q][k % APART] = add_product(
              spread<Quad>(state[k]), load_vector<Quad>(row + 4 * q), sums[q][k % APART]);
    }
#pragma GCC unroll 16
    for (int q = 0; q < QUADS; ++q) {
      const Quad sum = (sums[q][0] + sums[q][1]) + (sums[q][2] + sums[q][3]);
      memcpy(entries + 4 * q, &sum, sizeof sum);
    }
  }
#endif

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
