// Rows in several tables of different precision; each row stands in one of them.

#include "composed.cuh"
#include "numbers.cuh"

// How a table's entries are stored: numbers, or so many bits with a scale and a bias.
constexpr int FLOAT = 32, HALF = 16, BRAIN = 17;

// Fields: tables; then for each its rows, how they are stored, bytes of a row, bits
// that mark its ids, marked ids before each 64 (both 0 for the last table, which has
// the ids that no other marks).
constexpr int TABLE_FIELDS = 5;

// A number of N bytes that may begin anywhere.
template <class Number> __device__ __forceinline__ Number pick(const unsigned char* at) {
  unsigned char bytes[sizeof(Number)];
#pragma unroll
  for (int k = 0; k < sizeof(Number); ++k) bytes[k] = __ldg(at + k);
  Number number;
  memcpy(&number, bytes, sizeof(Number));
  return number;
}

template <int E> struct Tiered {
  static constexpr int ENTRIES = E, AHEAD = 4;
  const long long* fields;
  int dim;

  __device__ __forceinline__ Tiered(const long long* f, int dim) : fields(f), dim(dim) {}

  struct Place {
    const unsigned char* row;
    long long kind;
  };

  __device__ __forceinline__ Place find(long long id) const {
    const int tables = field(fields, 0);
    const long long* table = fields + 1;
    long long row = id;    // less the ids below that other tables have
    for (int t = 1; t < tables; ++t, table += TABLE_FIELDS) {
      const unsigned long long marks = array<unsigned long long>(table, 3)[id / 64];
      const int bit = id % 64;
      const long long below =
          array<unsigned>(table, 4)[id / 64] + __popcll(marks & ((1ull << bit) - 1));
      if (marks >> bit & 1) {
        row = below;
        break;
      }
      row -= below;
    }
    return {array<unsigned char>(table, 0) + row * field(table, 2), field(table, 1)};
  }

  __device__ __forceinline__ void read(const Place& place, int first,
                                       float (&entries)[E]) const {
    const int kind = place.kind;
    float scale = 1.0f, bias = 0.0f;
    if (kind <= 8) {
      const unsigned char* tail = place.row + (dim * kind + 7) / 8;
      scale = kind == 8 ? pick<float>(tail) : widen(pick<__half>(tail));
      bias = kind == 8 ? pick<float>(tail + 4) : widen(pick<__half>(tail + 2));
    }
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int at = first + j < dim ? first + j : 0;
      if (kind == FLOAT) entries[j] = pick<float>(place.row + 4 * at);
      else if (kind == HALF) entries[j] = widen(pick<__half>(place.row + 2 * at));
      else if (kind == BRAIN) entries[j] = widen(pick<__nv_bfloat16>(place.row + 2 * at));
      else {
        const unsigned codes = __ldg(place.row + at * kind / 8);
        const float code = codes >> at * kind % 8 & ((1u << kind) - 1);
        // Rounded twice, as NumPy does.
        entries[j] = __fadd_rn(__fmul_rn(code, scale), bias);
      }
    }
  }
};
