// Search among binary codes: exclusive or, count of ones.
//
// Distances are small whole numbers, 0 to 64 * WORDS, so that the k nearest codes of
// a query need no sort of all: first count how many codes lie at each distance, then
// gather those within the distance that holds the k-th.
//
// A thread keeps one code in registers and meets all queries of the block with it;
// the queries lie in shared memory. Codes are read once for each group of queries.

template <int WORDS> struct Code {
  unsigned long long word[WORDS];

  __device__ __forceinline__ int distance(const unsigned long long* other) const {
    int ones = 0;
#pragma unroll
    for (int k = 0; k < WORDS; ++k) ones += __popcll(word[k] ^ other[k]);
    return ones;
  }
};

constexpr int QUERIES = 16;    // met by each code that is read

template <int WORDS>
__device__ __forceinline__ int load_queries(const unsigned long long* queries,
                                            int count, unsigned long long* own) {
  const int first = blockIdx.y * QUERIES;
  const int here = min(QUERIES, count - first);
  for (int k = threadIdx.x; k < here * WORDS; k += blockDim.x)
    own[k] = queries[(long long)first * WORDS + k];
  __syncthreads();
  return here;
}

// How many codes lie at each distance from each query: counts (queries, BINS).
template <int WORDS>
__global__ void count_distances(const unsigned long long* __restrict__ codes,
                                long long rows,
                                const unsigned long long* __restrict__ queries,
                                int count, unsigned* __restrict__ counts) {
  constexpr int BINS = 64 * WORDS + 1;
  __shared__ unsigned long long own[QUERIES * WORDS];
  __shared__ unsigned bins[QUERIES * BINS];
  for (int k = threadIdx.x; k < QUERIES * BINS; k += blockDim.x) bins[k] = 0;
  const int here = load_queries<WORDS>(queries, count, own);
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x; row < rows;
       row += step) {
    Code<WORDS> code;
#pragma unroll
    for (int k = 0; k < WORDS; ++k) code.word[k] = codes[row * WORDS + k];
    for (int q = 0; q < here; ++q)
      atomicAdd(&bins[q * BINS + code.distance(own + q * WORDS)], 1u);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < here * BINS; k += blockDim.x)
    if (bins[k]) atomicAdd(&counts[(long long)blockIdx.y * QUERIES * BINS + k], bins[k]);
}

// Keys distance << 40 | row of all codes within each query's bound, in any order.
template <int WORDS>
__global__ void gather_within(const unsigned long long* __restrict__ codes,
                              long long rows,
                              const unsigned long long* __restrict__ queries,
                              int count, const int* __restrict__ bounds,
                              unsigned* __restrict__ found, long long room,
                              unsigned long long* __restrict__ keys) {
  __shared__ unsigned long long own[QUERIES * WORDS];
  __shared__ int limit[QUERIES];
  const int first = blockIdx.y * QUERIES;
  for (int q = threadIdx.x; q < min(QUERIES, count - first); q += blockDim.x)
    limit[q] = bounds[first + q];
  const int here = load_queries<WORDS>(queries, count, own);
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x; row < rows;
       row += step) {
    Code<WORDS> code;
#pragma unroll
    for (int k = 0; k < WORDS; ++k) code.word[k] = codes[row * WORDS + k];
    for (int q = 0; q < here; ++q) {
      const int distance = code.distance(own + q * WORDS);
      if (distance > limit[q]) continue;
      const unsigned place = atomicAdd(&found[first + q], 1u);
      keys[(first + q) * room + place] = (unsigned long long)distance << 40 | row;
    }
  }
}
