// Rows in several tables of different precision; each row stands in one of them.

#include "composed.cuh"
#include "numbers.cuh"

// How a table's entries are stored: numbers, or so many bits with a scale and a bias.
constexpr int FLOAT = 32, HALF = 16, BRAIN = 17;

// Fields: tables; then for each its rows, how they are stored, bytes of a row, bits
// that mark its ids, marked ids before each 64 (both 0 for the last table, which has
// the ids that no other marks).
constexpr int TABLE_FIELDS = 5;

// WHOLE: rows and their parts begin at multiples of 4 bytes, four entries a thread.
template <int E, bool WHOLE> struct Tiered {
  static constexpr int ENTRIES = E, AHEAD = 2;
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

  // A number that begins anywhere, unless all is whole.
  template <class Number>
  static __device__ __forceinline__ Number pick(const unsigned char* at) {
    if constexpr (WHOLE) return __ldg(reinterpret_cast<const Number*>(at));
    unsigned char bytes[sizeof(Number)];
#pragma unroll
    for (int k = 0; k < sizeof(Number); ++k) bytes[k] = __ldg(at + k);
    Number number;
    memcpy(&number, bytes, sizeof(Number));
    return number;
  }

  __device__ __forceinline__ void read(const Place& place, int first,
                                       float (&entries)[E]) const {
    const int kind = place.kind;
    if (kind > 8) return read_numbers(place.row, kind, first, entries);
    const unsigned char* tail = place.row + (dim * kind + 7) / 8;
    const float scale = kind == 8 ? pick<float>(tail) : widen(pick<__half>(tail));
    const float bias = kind == 8 ? pick<float>(tail + 4) : widen(pick<__half>(tail + 2));
    unsigned codes = 0;
    if (WHOLE) {
      const unsigned char* own = place.row + first * kind / 8;
      codes = kind == 8   ? pick<unsigned>(own)
              : kind == 4 ? pick<unsigned short>(own)
                          : pick<unsigned char>(own);
    }
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int at = first + j < dim ? first + j : 0;
      const unsigned shifted = WHOLE ? codes >> j * kind
                                     : __ldg(place.row + at * kind / 8) >> at * kind % 8;
      // Rounded twice, as NumPy does.
      const float code = shifted & ((1u << kind) - 1);
      entries[j] = __fadd_rn(__fmul_rn(code, scale), bias);
    }
  }

  __device__ __forceinline__ void read_numbers(const unsigned char* row, int kind,
                                               int first, float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int at = first + j < dim ? first + j : 0;
      if (kind == FLOAT) entries[j] = pick<float>(row + 4 * at);
      else if (kind == HALF) entries[j] = widen(pick<__half>(row + 2 * at));
      else entries[j] = widen(pick<__nv_bfloat16>(row + 2 * at));
    }
  }
};
