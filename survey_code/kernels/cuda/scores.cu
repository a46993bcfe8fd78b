// Scores of all rows for a query, by table look-up.

// scores[query, row] = sum over the books of table[query, book, codeword].
// A block keeps the tables of one query in shared memory, next to the processor.
template <class Codes>
__global__ void add_scores(const __grid_constant__ typename Codes::Fields fields,
                           int books, long long first, long long rows,
                           const float* __restrict__ tables, int entries,
                           float* __restrict__ scores) {
  extern __shared__ float own[];
  const Codes codes(fields, books);
  const long long query = blockIdx.y;
  const int size = books * entries;
  for (int k = threadIdx.x; k < size; k += blockDim.x)
    own[k] = tables[query * size + k];
  __syncthreads();
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < rows;
       at += step) {
    const typename Codes::Place row = codes.find(first + at);
    float sum = 0.0f;
    for (int book = 0; book < books; ++book)
      sum += own[book * entries + codes.number(row, book)];
    scores[query * rows + at] = sum;
  }
}
