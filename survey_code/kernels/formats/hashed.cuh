// Rows of a few small tables, named by digits of a hashed id.
//
// `read` has no branches: a thread then asks for all the rows of several ids before
// it waits for any.

#pragma once

#include "digits.cuh"

constexpr int ADD = 0, MULTIPLY = 1, CONCAT = 2;

template <int E, class Values, class Weights, int TABLES, int COMBINE> struct Hashed {
  static constexpr int ENTRIES = E, AHEAD = TABLES == 1 || COMBINE == CONCAT ? 2 : 1;
  using Fields = HashedFields<Values, Weights, TABLES>;
  const Fields& f;
  Values values;
  Weights weights;
  int width, columns;

  __device__ __forceinline__ Hashed(const Fields& f, int dim)
      : f(f), values(f.values, COMBINE == CONCAT ? dim / TABLES : dim),
        weights(f.weights, f.columns), width(COMBINE == CONCAT ? dim / TABLES : dim),
        columns(f.columns) {}

  struct Place {
    typename Values::Place rows[TABLES];
    float factor[TABLES + 1];
  };

  __device__ __forceinline__ Place find(long long id) const {
    Place found;
    const float sign = find_sign(id);
    typename Weights::Place entry = {};
    // A modulus of 0: an id's weights stand in the row of its own number.
    if (columns)
      entry = weights.find(f.weight_digit.modulus ? take_digit(f.weight_digit, id) : id);
#pragma unroll
    for (int t = 0; t <= TABLES; ++t) {
      // Without weights the rows of a sum, and the first of a product, take the sign.
      found.factor[t] = t < TABLES && (t == 0 || COMBINE == ADD) ? sign : 1.0f;
      if (t < columns) found.factor[t] = sign * read_number(weights, entry, t);
    }
    if (columns <= TABLES) found.factor[TABLES] = 0.0f;
#pragma unroll
    for (int t = 0; t < TABLES; ++t)
      found.rows[t] = values.find(take_digit(f.digits[t], id) + f.digits[t].start);
    return found;
  }

#ifdef ON_CPU
  __forceinline__ void fetch(const Place& found) const {
    for (int t = 0; t < TABLES; ++t) fetch_row(values, found.rows[t]);
  }
#endif

  __device__ __forceinline__ float find_sign(long long id) const {
    if (!f.sign[0]) return 1.0f;
    return mix(id, f.sign[0], f.sign[1], f.sign[2]) >> 31 & 1 ? -1.0f : 1.0f;
  }

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    if (COMBINE == CONCAT) {
      const int part = first / width;
      typename Values::Place row = found.rows[0];
#pragma unroll
      for (int t = 1; t < TABLES; ++t)
        if (t == part) row = found.rows[t];
      values.read(row, first - part * width, entries);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] *= found.factor[0];
      return;
    }
    float parts[TABLES][E];
#pragma unroll
    for (int t = 0; t < TABLES; ++t) values.read(found.rows[t], first, parts[t]);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      entries[j] = found.factor[0] * parts[0][j];
#pragma unroll
      for (int t = 1; t < TABLES; ++t) {
        const float part = __fmul_rn(found.factor[t], parts[t][j]);
        entries[j] = COMBINE == ADD ? __fadd_rn(entries[j], part) : entries[j] * part;
      }
      if (COMBINE == ADD) entries[j] += found.factor[TABLES];
    }
  }
};

// Rows of many tables side by side: a thread takes the one digit that it needs.
template <int E, class Values, int TABLES> struct SideBySide {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = SideBySideFields<Values>;
  using Place = long long;
  const Fields& f;
  Values values;
  const Digit* digits;
  int width;

  __device__ __forceinline__ SideBySide(const Fields& f, int dim)
      : f(f), values(f.values, dim / TABLES), digits(array<Digit>(f.digits)),
        width(dim / TABLES) {}

  __device__ __forceinline__ Place find(long long id) const { return id; }

  __device__ __forceinline__ void read(Place id, int first, float (&entries)[E]) const {
    const int part = first / width;
    const Digit how = load_digit(digits + part);
    values.read(values.find(take_digit(how, id) + how.start), first - part * width,
                entries);
    if (!f.sign[0]) return;
    const bool negative = mix(id, f.sign[0], f.sign[1], f.sign[2]) >> 31 & 1;
    const float sign = negative ? -1.0f : 1.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] *= sign;
  }
};

// A row that runs through a small network, named by a second digit: one hidden layer
// of HIDDEN units with ReLU.  They are computed where the row is found, once an id.
template <int E, class Values, int HIDDEN> struct Path {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = PathFields<Values>;
  const Fields& f;
  Values values;
  int dim;

  __device__ __forceinline__ Path(const Fields& f, int dim)
      : f(f), values(f.values, dim), dim(dim) {}

  struct Place {
    float hidden[HIDDEN];
    unsigned network;
  };

  // A network: first (dim, HIDDEN), bias (HIDDEN), second (HIDDEN, dim), shift (dim).
  __device__ __forceinline__ const float* weights(unsigned network) const {
    return array<float>(f.networks) + network * f.size;
  }

  __device__ __forceinline__ Place find(long long id) const {
    Place signals;
    signals.network = take_digit(f.digits[1], id);
    const float* first = weights(signals.network);
    const auto row = values.find(take_digit(f.digits[0], id));
#pragma unroll
    for (int k = 0; k < HIDDEN; ++k) signals.hidden[k] = 0.0f;
    for (int i = 0; i < dim; ++i, first += HIDDEN) {
      const float entry = read_number(values, row, i);
#pragma unroll
      for (int k = 0; k < HIDDEN; ++k)
        signals.hidden[k] = fmaf(entry, __ldg(first + k), signals.hidden[k]);
    }
#pragma unroll
    for (int k = 0; k < HIDDEN; ++k)
      signals.hidden[k] = fmaxf(signals.hidden[k] + __ldg(first + k), 0.0f);
    return signals;
  }

  __device__ __forceinline__ void read(const Place& signals, int first,
                                       float (&entries)[E]) const {
    const float* second = weights(signals.network) + (dim + 1) * HIDDEN + first;
#pragma unroll
    for (int j = 0; j < E; ++j)
      entries[j] = first + j < dim ? __ldg(second + HIDDEN * dim + j) : 0.0f;
#pragma unroll
    for (int k = 0; k < HIDDEN; ++k)
#pragma unroll
      for (int j = 0; j < E; ++j)
        if (first + j < dim)
          entries[j] =
              fmaf(signals.hidden[k], __ldg(second + k * dim + j), entries[j]);
  }
};
