// Codes of rows in one stream of bits, and which codewords they name.

#include "composed.cuh"

// Fields: codes, bits, codewords, books, width, firsts, groups, first id of each
// group, marks of heads (0: none), heads below each word, codes of heads, their
// bits, values of heads, hashed rows (0: none); then seven for each book's hash, the
// last one the first of its rows.
struct Codes {
  const long long* fields;
  const unsigned* stream;
  int books, bits;

  __device__ __forceinline__ explicit Codes(const long long* f)
      : fields(f), stream(array<unsigned>(f, 0)), books(field(f, 3)),
        bits(field(f, 1)) {}

  struct Row {
    const unsigned* stream;
    const int* firsts;       // row of each book in the codewords
    long long place;         // of the first code in its stream, or of the head
    int bits;                // 0: a head whose numbers are stored
  };

  __device__ __forceinline__ Row find(long long id) const {
    const unsigned long long* marks = array<unsigned long long>(fields, 8);
    Row row = {stream, array<int>(fields, 5), id, bits};
    const int groups = field(fields, 6);
    if (groups > 1) {
      const long long* starts = array<long long>(fields, 7);
      row.firsts += (search(starts, 0, groups, id + 1) - 1) * books;
    }
    if (marks) {
      const unsigned long long word = marks[id >> 6];
      const int bit = id & 63;
      const long long heads =
          array<unsigned>(fields, 9)[id >> 6] + __popcll(word & ((1ull << bit) - 1));
      const bool head = word >> bit & 1;
      row.place = head ? heads : id - heads;
      if (head) row.stream = array<unsigned>(fields, 10);
      if (head) row.bits = field(fields, 11);
    }
    row.place *= row.bits ? books : 1;
    return row;
  }

  // Row of the codewords that code j of a row names.
  __device__ __forceinline__ int codeword(const Row& row, int j) const {
    const long long start = (row.place + j) * row.bits;
    const unsigned* word = row.stream + (start >> 5);
    const unsigned long long pair = (unsigned long long)word[1] << 32 | word[0];
    return row.firsts[j] + int(pair >> (start & 31) & ((1u << row.bits) - 1));
  }
};
