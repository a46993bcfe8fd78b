// Rows that are named by codes: codewords side by side, or added up; and the scores
// of all rows for a query, by table look-up.

#include "composed.cuh"
#include "numbers.cuh"

// Fields: codes, bits, codewords, books, width, firsts, groups, first id of each
// group, marks of heads (0: none), heads below each word, codes of heads, their
// bits, values of heads.
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

// scores[query, row] = sum over the books of table[query, book, codeword].
// A block keeps the tables of one query in shared memory, next to the processor.
__global__ void add_scores(const long long* fields, long long first, long long rows,
                           const float* __restrict__ tables, int entries,
                           float* __restrict__ scores) {
  extern __shared__ float own[];
  const Codes codes(fields);
  const long long query = blockIdx.y;
  const int size = codes.books * entries;
  for (int k = threadIdx.x; k < size; k += blockDim.x)
    own[k] = tables[query * size + k];
  __syncthreads();
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < rows;
       at += step) {
    const Codes::Row row = codes.find(first + at);
    float sum = 0.0f;
    for (int book = 0; book < codes.books; ++book)
      sum += own[book * entries + codes.codeword(row, book) - row.firsts[book]];
    scores[query * rows + at] = sum;
  }
}
