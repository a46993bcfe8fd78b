// Rows of a few small tables, named by digits of a hashed id.

#include "composed.cuh"

constexpr int ADD = 0, MULTIPLY = 1, CONCAT = 2;

template <int E, int TABLES, int COMBINE> struct Hashed {
  static constexpr int ENTRIES = E;
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
    const float* rows[TABLES];
    const float* own;
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
      places.rows[t] = values + (take_digit(how, id) + field(how, DIGIT_FIELDS)) * width;
    }
    return places;
  }

  __device__ __forceinline__ float find_sign(long long id) const {
    const unsigned long long first = field(fields, 2);
    if (!first) return 1.0f;
    return mix(id, first, field(fields, 3)) >> 31 & 1 ? -1.0f : 1.0f;
  }

  // The row of an id that is listed in `keys`, or nothing.
  __device__ __forceinline__ const float* find_own(long long id) const {
    if (!keys) return nullptr;
    const long long count = field(fields, 7), at = search(keys, 0, count, id);
    if (at == count || keys[at] != id) return nullptr;
    return values + field(fields, 1) * width + at * dim;
  }

  __device__ __forceinline__ void read(const Places& places, int first,
                                       float (&entries)[E]) const {
    if (places.own) return load_floats<E>(places.own + first, entries);
    if (COMBINE == CONCAT) {
      const int part = first / width;
      const float* row = places.rows[0];
#pragma unroll
      for (int t = 1; t < TABLES; ++t)
        if (t == part) row = places.rows[t];
      load_floats<E>(row + first - part * width, entries);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] *= places.factor[0];
      return;
    }
    float parts[TABLES][E];
#pragma unroll
    for (int t = 0; t < TABLES; ++t) load_floats<E>(places.rows[t] + first, parts[t]);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      entries[j] = places.factor[0] * parts[0][j];
#pragma unroll
      for (int t = 1; t < TABLES; ++t) {
        const float part = __fmul_rn(places.factor[t], parts[t][j]);
        entries[j] = COMBINE == ADD ? __fadd_rn(entries[j], part) : entries[j] * part;
      }
      if (COMBINE == ADD) entries[j] += places.factor[TABLES];
    }
  }
};
