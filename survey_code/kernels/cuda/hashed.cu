// Rows of a few small tables, named by digits of a hashed id.
//
// `read` has no branches: a thread then asks for all the rows of several ids before
// it waits for any.

#include "composed.cuh"

constexpr int ADD = 0, MULTIPLY = 1, CONCAT = 2;
constexpr unsigned NONE = ~0u;

// OWN: some ids, listed in `keys`, have rows of their own.
template <int E, int TABLES, int COMBINE, bool OWN> struct Hashed {
  static constexpr int ENTRIES = E, AHEAD = TABLES == 1 || COMBINE == CONCAT ? 4 : 2;
  const long long* fields;
  const float *values, *weights;
  const int* keys;
  int dim, width;

  __device__ __forceinline__ Hashed(const long long* f, int dim)
      : fields(f), values(array<float>(f, 0)), weights(array<float>(f, 4)),
        keys(array<int>(f, 6)), dim(dim), width(COMBINE == CONCAT ? dim / TABLES : dim) {}

  // Fields: values, first row kept apart, two multipliers of the sign, weights,
  // their columns, keys, how many; six for the weights' digit; then seven for each
  // table, the last one its first row.
  struct Places {
    unsigned rows[TABLES];
    unsigned own;              // its place among `keys`, or NONE
    float factor[TABLES + 1];
  };

  __device__ __forceinline__ Places find(long long id) const {
    Places places;
    places.own = find_own(id);
    const float sign = find_sign(id);
    const long long columns = field(fields, 5);
    long long entry = id;
    if (columns && field(fields, 12)) entry = take_digit(fields + 8, id);
#pragma unroll
    for (int t = 0; t <= TABLES; ++t) {
      // Without weights the rows of a sum, and the first of a product, take the sign.
      places.factor[t] = t < TABLES && (t == 0 || COMBINE == ADD) ? sign : 1.0f;
      if (t < columns) places.factor[t] = sign * __ldg(weights + entry * columns + t);
    }
    if (columns <= TABLES) places.factor[TABLES] = 0.0f;
#pragma unroll
    for (int t = 0; t < TABLES; ++t) {
      const long long* how = fields + 14 + t * (DIGIT_FIELDS + 1);
      places.rows[t] = take_digit(how, id) + field(how, DIGIT_FIELDS);
    }
    return places;
  }

  __device__ __forceinline__ float find_sign(long long id) const {
    const unsigned long long first = field(fields, 2);
    if (!first) return 1.0f;
    return mix(id, first, field(fields, 3)) >> 31 & 1 ? -1.0f : 1.0f;
  }

  // Where an id stands among those listed in `keys`.
  __device__ __forceinline__ unsigned find_own(long long id) const {
    if (!OWN) return NONE;
    const long long count = field(fields, 7), at = search(keys, 0, count, id);
    return at == count || keys[at] != id ? NONE : unsigned(at);
  }

  __device__ __forceinline__ const float* row(unsigned number) const {
    return values + (long long)number * width;
  }

  __device__ __forceinline__ void read(const Places& places, int first,
                                       float (&entries)[E]) const {
    const bool own = OWN && places.own != NONE;
    const float* kept = values + field(fields, 1) * width + (long long)places.own * dim;
    if (COMBINE == CONCAT) {
      const int part = first / width;
      unsigned number = places.rows[0];
#pragma unroll
      for (int t = 1; t < TABLES; ++t)
        if (t == part) number = places.rows[t];
      const float* place = row(number) - part * width;
      load_floats<E>((own ? kept : place) + first, entries);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] *= own ? 1.0f : places.factor[0];
      return;
    }
    float parts[TABLES][E];
#pragma unroll
    for (int t = 0; t < TABLES; ++t)
      load_floats<E>((own ? kept : row(places.rows[t])) + first, parts[t]);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      entries[j] = places.factor[0] * parts[0][j];
#pragma unroll
      for (int t = 1; t < TABLES; ++t) {
        const float part = __fmul_rn(places.factor[t], parts[t][j]);
        entries[j] = COMBINE == ADD ? __fadd_rn(entries[j], part) : entries[j] * part;
      }
      if (COMBINE == ADD) entries[j] += places.factor[TABLES];
      if (own) entries[j] = parts[0][j];
    }
  }
};

// A row that runs through a small network, named by a second digit: one hidden layer
// of HIDDEN units with ReLU.  They are computed where the row is found, once an id.
//
// Fields: values, networks, numbers of one; seven for each digit, as above.
template <int E, int HIDDEN> struct Path {
  static constexpr int ENTRIES = E, AHEAD = 2;
  const long long* fields;
  const float *values, *networks;
  int dim;

  __device__ __forceinline__ Path(const long long* f, int dim)
      : fields(f), values(array<float>(f, 0)), networks(array<float>(f, 1)), dim(dim) {}

  struct Signals {
    float hidden[HIDDEN];
    unsigned network;
  };

  // A network: first (dim, HIDDEN), bias (HIDDEN), second (HIDDEN, dim), shift (dim).
  __device__ __forceinline__ const float* weights(unsigned network) const {
    return networks + network * field(fields, 2);
  }

  __device__ __forceinline__ Signals find(long long id) const {
    Signals signals;
    signals.network = take_digit(fields + 3 + DIGIT_FIELDS + 1, id);
    const float* first = weights(signals.network);
    const float* row = values + take_digit(fields + 3, id) * dim;
#pragma unroll
    for (int k = 0; k < HIDDEN; ++k) signals.hidden[k] = 0.0f;
    for (int i = 0; i < dim; ++i, first += HIDDEN) {
      const float entry = __ldg(row + i);
#pragma unroll
      for (int k = 0; k < HIDDEN; ++k)
        signals.hidden[k] = fmaf(entry, __ldg(first + k), signals.hidden[k]);
    }
#pragma unroll
    for (int k = 0; k < HIDDEN; ++k)
      signals.hidden[k] = fmaxf(signals.hidden[k] + __ldg(first + k), 0.0f);
    return signals;
  }

  __device__ __forceinline__ void read(const Signals& signals, int first,
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
