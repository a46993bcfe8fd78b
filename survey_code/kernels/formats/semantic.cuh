// Rows of tables that are named by hashes of an id's codes: of stretches of them.

#pragma once

#include "digits.cuh"

template <int E, class Codes, class Values, int GRAMS, bool ADDED> struct Semantic {
  static constexpr int ENTRIES = E, AHEAD = GRAMS == 1 || !ADDED ? 2 : 1;
  using Fields = SemanticFields<Codes, Values, GRAMS>;
  const Fields& f;
  Codes codes;
  Values values;
  int width;

  __device__ __forceinline__ Semantic(const Fields& f, int dim)
      : f(f), codes(f.codes, f.levels), values(f.values, ADDED ? dim : dim / GRAMS),
        width(ADDED ? dim : dim / GRAMS) {}

  struct Place {
    typename Values::Place rows[GRAMS];
  };

  __device__ __forceinline__ Place find(long long id) const {
    const auto row = codes.find(id);
    unsigned long long joined = 0;    // the first code in the lowest bits
    for (int level = 0; level < f.levels; ++level)
      joined |= (unsigned long long)codes.number(row, level) << f.bits * level;
    unsigned long long field = 0;
    if (f.fields) field = search(array<long long>(f.starts), 0, f.fields, id + 1) - 1;
    Place found;
#pragma unroll
    for (int t = 0; t < GRAMS; ++t) {
      const Gram& how = f.grams[t];
      const unsigned long long own = joined >> how.begin & (1ull << how.length) - 1;
      const long long gram = own | field << how.length;
      found.rows[t] = values.find(take_digit(how.digit, gram) + how.digit.start);
    }
    return found;
  }

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const { announce_row(codes, id); }
  __forceinline__ void fetch(const Place& found) const {
    for (int t = 0; t < GRAMS; ++t) fetch_row(values, found.rows[t]);
  }
#endif

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    const int part = ADDED ? 0 : first / width;
    typename Values::Place row = found.rows[0];
#pragma unroll
    for (int t = 1; t < GRAMS; ++t)
      if (t == part) row = found.rows[t];
    values.read(row, first - part * width, entries);
    if (!ADDED) return;
#pragma unroll
    for (int t = 1; t < GRAMS; ++t) {
      float more[E];
      values.read(found.rows[t], first, more);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] = __fadd_rn(entries[j], more[j]);
    }
  }
};
