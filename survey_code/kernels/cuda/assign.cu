// k-means: the nearest centroid of each point, without storing their distances; and
// whether it is the nearest for sure, or roundings may have chosen it.

// A block keeps a tile of centroids in shared memory; a thread keeps its point.
template <int DIM>
__global__ void assign_points(const float* __restrict__ points, long long count,
                              const float* __restrict__ centroids, int clusters,
                              int tile, const float* __restrict__ longest,
                              int* __restrict__ nearest, bool* __restrict__ sure) {
  extern __shared__ float shared[];
  const long long place = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  float point[DIM];
  float square = 0.0f;  // of its length
#pragma unroll
  for (int j = 0; j < DIM; ++j) {
    point[j] = place < count ? points[place * DIM + j] : 0.0f;
    square = fmaf(point[j], point[j], square);
  }
  int best = 0;
  float least = 3.4e38f, second = 3.4e38f;
  for (int start = 0; start < clusters; start += tile) {
    const int held = min(tile, clusters - start);
    __syncthreads();
    for (int k = threadIdx.x; k < held * DIM; k += blockDim.x)
      shared[k] = centroids[(long long)start * DIM + k];
    __syncthreads();
    for (int c = 0; c < held; ++c) {
      float distance = 0.0f;
#pragma unroll
      for (int j = 0; j < DIM; ++j) {
        const float gap = point[j] - shared[c * DIM + j];
        distance = fmaf(gap, gap, distance);
      }
      second = fminf(second, fmaxf(least, distance));
      // Of equal distances the lower number wins.
      if (distance < least) least = distance, best = start + c;
    }
  }
  if (place >= count) return;
  nearest[place] = best;
  // Rounding point, centroid and difference moves the difference by at most `off`;
  // summing DIM squares adds as many roundings.  Both distances may be wrong by
  // `error`, doubled for what it leaves out and for the roundings of whoever compares
  // in float64; 1e-37 covers squares that are too small for a float.  Where the bound
  // is infinite, nothing is sure.
  const float unit = 5.9604645e-8f;  // 2^-24
  const float off = 2.01f * unit * (sqrtf(square) + *longest);
  const float error = 2 * off * sqrtf(second) + 8 * off * off + (DIM + 4) * unit * second;
  sure[place] = second - least > 4 * error + 1e-37f;
}
