// Scores of all rows for a query, by table look-up.

#include "codes.cuh"

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
      sum += own[book * entries + codes.code(row, book)];
    scores[query * rows + at] = sum;
  }
}
