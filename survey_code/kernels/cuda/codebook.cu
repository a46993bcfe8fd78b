// Rows that are named by codes: codewords side by side, alone or each with a hashed
// row added; or codewords added up.

#include "codes.cuh"
#include "numbers.cuh"

constexpr int SIDE = 0, HELPED = 1, ADDED = 2;

template <int E, typename Number, int HOW> struct Codebook {
  static constexpr int ENTRIES = E, AHEAD = 2;
  Codes codes;
  const Number *words, *heads;
  int dim, width;

  __device__ __forceinline__ Codebook(const long long* f, int dim)
      : codes(f), words(array<Number>(f, 2)), heads(array<Number>(f, 12)), dim(dim),
        width(field(f, 4)) {}

  struct Place {
    Codes::Row row;
    unsigned id[2];    // its halves, for the hashed rows
  };

  __device__ __forceinline__ Place find(long long id) const {
    return {codes.find(id), {unsigned(id), unsigned(id >> 32)}};
  }

  __device__ __forceinline__ const Number* codeword(const Codes::Row& row,
                                                    int book) const {
    return words + (long long)codes.codeword(row, book) * width;
  }

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    const Codes::Row& row = found.row;
    const bool stored = codes.is_stored(row);
    const int book = HOW == ADDED ? 0 : first / width;
    const int at = first - book * width;
    // A head with numbers of its own has no code, and there may be no codes at all.
    const Number* place = stored ? heads + (long long)row.place * dim + first
                                 : codeword(row, book) + at;
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = widen(place[j]);
    if (HOW == HELPED) {
      const long long* how = codes.fields + 14 + book * (DIGIT_FIELDS + 1);
      const long long id = (long long)found.id[1] << 32 | found.id[0];
      const long long helper = take_digit(how, id) + field(how, DIGIT_FIELDS);
      float added[E];
      load_floats<E>(array<float>(codes.fields, 13) + helper * width + at, added);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] += stored ? 0.0f : added[j];
    }
    if (HOW != ADDED || stored) return;
    for (int book = 1; book < codes.books; ++book) {
      place = codeword(row, book) + first;
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] += widen(place[j]);
    }
  }
};
