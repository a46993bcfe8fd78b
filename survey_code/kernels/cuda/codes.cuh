// Codes of rows in one stream of bits, and which codewords they name.

#include "composed.cuh"

// Fields: codes, bits, codewords, books, width, firsts, groups, first id of each
// group, marks of heads (0: none), heads below each word, codes of heads, their
// bits, values of heads, hashed rows (0: none); then seven for each book's hash, the
// last one the first of its rows.
struct Codes {
  const long long* fields;
  const unsigned* streams[2];    // of the rows, and of the heads
  int books, bits[2];

  __device__ __forceinline__ explicit Codes(const long long* f)
      : fields(f), streams{array<unsigned>(f, 0), array<unsigned>(f, 10)},
        books(field(f, 3)), bits{int(field(f, 1)), int(field(f, 11))} {}

  struct Row {
    unsigned place;    // among the rows, or among the heads
    int firsts;        // where the first codewords of its group's books are listed
    int head;          // 0 or 1
  };

  __device__ __forceinline__ Row find(long long id) const {
    Row row = {unsigned(id), 0, 0};
    const unsigned long long* marks = array<unsigned long long>(fields, 8);
    const int groups = field(fields, 6);
    if (groups > 1) {
      const long long* starts = array<long long>(fields, 7);
      row.firsts = (search(starts, 0, groups, id + 1) - 1) * books;
    }
    if (marks) {
      const unsigned long long word = marks[id >> 6];
      const int bit = id & 63;
      const unsigned heads =
          array<unsigned>(fields, 9)[id >> 6] + __popcll(word & ((1ull << bit) - 1));
      row.head = word >> bit & 1;
      row.place = row.head ? heads : row.place - heads;
    }
    return row;
  }

  // A head whose numbers are stored, and not codes.
  __device__ __forceinline__ bool is_stored(const Row& row) const {
    return row.head && !bits[1];
  }

  // Code j of a row.
  __device__ __forceinline__ int code(const Row& row, int j) const {
    const int own = row.head ? bits[1] : bits[0];
    const long long start = ((long long)row.place * books + j) * own;
    const unsigned* word = (row.head ? streams[1] : streams[0]) + (start >> 5);
    const unsigned long long pair = (unsigned long long)__ldg(word + 1) << 32 | __ldg(word);
    return pair >> (start & 31) & ((1u << own) - 1);
  }

  // Row of the codewords that code j names.
  __device__ __forceinline__ int codeword(const Row& row, int j) const {
    return __ldg(array<int>(fields, 5) + row.firsts + j) + code(row, j);
  }
};
