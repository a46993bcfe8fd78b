// Rows of 8, 4, 3, 2 or 1 bit codes q with a scale and a bias: entry = scale * q + bias.
// Centred rows have no bias, and entry = scale * (q - half the largest code).
//
// On the GPU a row lies as   codes | scale, bias | padding   to whole 32-byte sectors:
// memory is fetched in sectors, so a row that straddles one more costs as much as a
// longer row.

#pragma once

#include "reading.cuh"

// ALIGNED: scale and bias begin at a multiple of their bytes.
template <int E, int BITS, bool HALF, bool ALIGNED, bool CENTRED, int ROWS_AHEAD = 4>
struct Rowwise {
  static constexpr int ENTRIES = E, AHEAD = ROWS_AHEAD;
  static constexpr float CENTRE = ((1 << BITS) - 1) * 0.5f;
  static constexpr int BYTES = E * BITS < 8 ? 1 : E * BITS / 8;
  using Fields = RowwiseFields;
  using Place = unsigned;
  const unsigned char* table;
  unsigned stride;    // bytes from row to row
  int tail;            // where a row's scale stands

  __device__ __forceinline__ Rowwise(const Fields& f, int)
      : table(array<unsigned char>(f.table)), stride(f.stride), tail(f.tail) {}

  struct Piece {
    Word<BYTES> codes;
    float scale = 0.0f, bias = 0.0f;

    __device__ __forceinline__ float code(int j) const {
      constexpr int HELD = 32 / BITS;    // codes in a part
      constexpr unsigned MASK = (1u << BITS) - 1;
      // A small integer in the mantissa of 2^23 is that integer above 2^23.
      const unsigned q = (codes.part[j / HELD] >> (j % HELD * BITS)) & MASK;
      return __uint_as_float(0x4B000000u | q) - 8388608.0f;
    }
    // Rounded twice, as NumPy does: a look-up gives the same bits everywhere. Centred
    // entries are rounded once, as the difference is exact.
    __device__ __forceinline__ float value(int j) const {
      if constexpr (CENTRED) return __fmul_rn(code(j) - CENTRE, scale);
      return __fadd_rn(__fmul_rn(code(j), scale), bias);
    }
  };

  // Sums of bags. What every entry of a row has in common, the bias, is added up
  // once and not once an entry. Nor are the codes turned into numbers one by one:
  // below 8 bits, a code at the top of the mantissa of 1 is 1 + q / 2^BITS. Shifts
  // and masks put four codes in place at a time, one byte permutation picks each,
  // and the ones are taken off with the biases.
  struct Sum {
    float entries[E] = {}, shift = 0.0f;

    __device__ __forceinline__ void add(const Piece& row, float factor) {
      if constexpr (BITS == 8) {
        const float scale = factor * row.scale;
        shift = fmaf(factor, row.bias, shift);
#pragma unroll
        for (int j = 0; j < E; ++j) entries[j] = fmaf(scale, row.code(j), entries[j]);
      } else {
        constexpr int HELD = 32 / BITS, IN_BYTE = 8 / BITS;
        constexpr unsigned TOP = ((1u << BITS) - 1) << (7 - BITS);
        const float scale = factor * row.scale * (1 << BITS);
        shift += fmaf(factor, row.bias, -scale);
#pragma unroll
        for (int k = 0; k < IN_BYTE; ++k) {
          constexpr int FIRST = 7 - BITS;
          const int left = FIRST - BITS * k;    // how far code k of a byte must move
#pragma unroll
          for (int part = 0; part < Word<BYTES>::PARTS; ++part) {
            const unsigned codes = row.codes.part[part];
            const unsigned moved = left >= 0 ? codes << left : codes >> -left;
            const unsigned placed = (moved & (TOP * 0x01010101u)) | 0x80808080u;
#pragma unroll
            for (int byte = 0; byte < 4; ++byte) {
              const int j = part * HELD + byte * IN_BYTE + k;
              if (j >= E) continue;
              // Bytes, high to low: 0x3F, the code's byte, 0, 0.
              const unsigned bits = __byte_perm(placed, 0x3F00u, 0x5044u | byte << 8);
              entries[j] = fmaf(scale, __uint_as_float(bits), entries[j]);
            }
          }
        }
      }
    }
    __device__ __forceinline__ float value(int j) const { return entries[j] + shift; }
  };

  __device__ __forceinline__ Piece piece(long long id, int number) const {
    return piece(table + id * stride, number);
  }

  __device__ __forceinline__ Piece piece(const unsigned char* row, int number) const {
    Piece found;
    found.codes = Word<BYTES>::read(row + number * BYTES);
    if constexpr (CENTRED) {
      if constexpr (HALF) found.scale = __half2float(parameters<__half>(row));
      else found.scale = parameters<float>(row);
      found.bias = -CENTRE * found.scale;    // for sums
    } else if (HALF) {
      const __half2 both = parameters<__half2>(row);
      found.scale = __low2float(both);
      found.bias = __high2float(both);
    } else {
      const float2 both = parameters<float2>(row);
      found.scale = both.x;
      found.bias = both.y;
    }
    return found;
  }

  template <class Both> __device__ __forceinline__ Both parameters(
      const unsigned char* row) const {
    if constexpr (ALIGNED) return load<Both>(row + tail);
    unsigned char bytes[sizeof(Both)];
#pragma unroll
    for (int k = 0; k < sizeof(Both); ++k) bytes[k] = __ldg(row + tail + k);
    Both both;
    memcpy(&both, bytes, sizeof(Both));
    return both;
  }

  __device__ __forceinline__ Place find(long long id) const { return id; }
#ifdef ON_CPU
  __forceinline__ float parameter(const unsigned char* row, int k) const {
    return HALF ? load_number<__half>(row + tail + 2 * k)
                : load_number<float>(row + tail + 4 * k);
  }
  __forceinline__ void fetch(Place row) const {
    fetch_bytes(table + (unsigned long long)row * stride, stride);
  }
#endif

  __device__ __forceinline__ void read(Place row, int first, float (&entries)[E]) const {
    // Less than a byte of codes is found within its byte.
    constexpr int IN_BYTE = 8 / BITS;
    const unsigned char* place = table + (unsigned long long)row * stride;
#ifdef ON_CPU
    const float scale = parameter(place, 0), bias = CENTRED ? 0.0f : parameter(place, 1);
    decode_codes<E, BITS, CENTRED>(place, first, scale, bias, entries);
#else
    Piece found = piece(place, E < IN_BYTE ? first / IN_BYTE : first / E);
    if (E < IN_BYTE) found.codes.part[0] >>= first % IN_BYTE * BITS;
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = found.value(j);
#endif
  }
};

// Codes of 3 bits: a thread takes its entries' codes from two words of the row, as one
// number.  Rows begin at whole words.
template <int E, int BITS, bool HALF, bool CENTRED> struct Crossing {
  static constexpr int ENTRIES = E, AHEAD = 2;
  static constexpr float CENTRE = ((1 << BITS) - 1) * 0.5f;
  using Fields = CrossingFields;
  using Place = unsigned;
  const unsigned char* table;
  unsigned stride;    // bytes from row to row
  int tail;            // where a row's scale stands

  __device__ __forceinline__ Crossing(const Fields& f, int)
      : table(array<unsigned char>(f.table)), stride(f.stride), tail(f.tail) {}

  __device__ __forceinline__ Place find(long long id) const { return id; }
#ifdef ON_CPU
  __forceinline__ void fetch(Place row) const {
    fetch_bytes(table + (unsigned long long)row * stride, stride);
  }
#endif

  __device__ __forceinline__ float parameter(const unsigned char* row, int k) const {
    if constexpr (HALF) return load_bytewise<__half>(row + tail + 2 * k);
    return load_bytewise<float>(row + tail + 4 * k);
  }

  __device__ __forceinline__ void read(Place id, int first, float (&entries)[E]) const {
    const unsigned char* row = table + (unsigned long long)id * stride;
    const float scale = parameter(row, 0), bias = CENTRED ? 0.0f : parameter(row, 1);
#ifdef ON_CPU
    decode_codes<E, BITS, CENTRED>(row, first, scale, bias, entries);
#else
    const unsigned long long codes = load_codes<E, BITS>(row, first);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const float code = (unsigned)(codes >> (j * BITS)) & ((1u << BITS) - 1);
      // As in Rowwise: rounded twice, or once where rows are centred.
      if constexpr (CENTRED) entries[j] = __fmul_rn(code - CENTRE, scale);
      else entries[j] = __fadd_rn(__fmul_rn(code, scale), bias);
    }
#endif
  }
};

#ifdef ON_CPU
// Codes whose scales and biases stand in an array of their own: one for all rows, for
// each of them, or for each group.  A GPU has them copied beside the codes instead.
template <int E, int BITS, bool CENTRED, class Parameters> struct Apart {
  static constexpr int ENTRIES = E, AHEAD = 1;
  using Fields = ApartFields<Parameters>;
  const unsigned char* table;
  long long stride, groups, rows;
  const long long* starts;     // first row of each group
  Parameters parameters;
  float factor;

  Apart(const Fields& f, int)
      : table(array<unsigned char>(f.table)), stride(f.stride), groups(f.groups),
        rows(f.count), starts(array<long long>(f.starts)),
        parameters(f.parameters, CENTRED ? 1 : 2), factor(f.factor) {}

  struct Place {
    unsigned row;
    float scale, bias;
  };

  __forceinline__ Place find(long long id) const {
    long long group = groups == rows ? id : 0;
    if (groups > 1 && starts) group = search(starts, 0, groups, id + 1) - 1;
    const auto own = parameters.find(group);
    const float scale = factor * read_number(parameters, own, 0);
    return {(unsigned)id, scale, CENTRED ? 0.0f : read_number(parameters, own, 1)};
  }

  __forceinline__ void announce(long long id) const {
    if (groups == rows) announce_row(parameters, id);
  }
  __forceinline__ void fetch(const Place& found) const {
    fetch_bytes(table + found.row * stride, stride);
  }

  __forceinline__ void read(const Place& found, int first, float (&entries)[E]) const {
    decode_codes<E, BITS, CENTRED>(table + found.row * stride, first, found.scale,
                                   found.bias, entries);
  }
};
#endif
