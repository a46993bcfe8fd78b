// Rows that are named by codes: codewords side by side, or added up.

#include "codes.cuh"
#include "numbers.cuh"

template <int E, typename Number, bool ADDED> struct Codebook {
  static constexpr int ENTRIES = E;
  Codes codes;
  const Number *words, *heads;
  int dim, width;

  __device__ __forceinline__ Codebook(const long long* f, int dim)
      : codes(f), words(array<Number>(f, 2)), heads(array<Number>(f, 12)), dim(dim),
        width(field(f, 4)) {}

  __device__ __forceinline__ Codes::Row find(long long id) const {
    return codes.find(id);
  }

  __device__ __forceinline__ void read(const Codes::Row& row, int first,
                                       float (&entries)[E]) const {
    const Number* place = heads + row.place * dim + first;
    if (row.bits) {
      const int book = ADDED ? 0 : first / width;
      place = words + (long long)codes.codeword(row, book) * width + first - book * width;
    }
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = widen(place[j]);
    if (!ADDED || !row.bits) return;
    for (int book = 1; book < codes.books; ++book) {
      place = words + (long long)codes.codeword(row, book) * width + first;
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] += widen(place[j]);
    }
  }
};
