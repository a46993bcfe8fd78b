// Reading and pooling rows of a table whose entries are stored in few bits.
//
// Every stored format says how one thread reads its share of a row: E entries that
// lie side by side, a "piece". What is common to all formats stands here:
//
//   read_rows   one row per id, written out in float32
//   pool_rows   sum or mean over bags of ids
//   max_rows    maximum over bags of ids
//
// A look-up computes almost nothing, so its speed is decided by how many rows are
// under way at once. Each thread therefore first asks for several rows, and only then
// uses any of them.

// Errors, reported through one word that the caller reads back.
constexpr unsigned BAD_ID = 1, BAD_OFFSET = 2;

template <class T> __device__ __forceinline__ T load(const void* place) {
  return *reinterpret_cast<const T*>(place);
}

// Bytes that one thread reads at once, as 32-bit parts.
template <int BYTES> struct Word {
  static constexpr int PARTS = (BYTES + 3) / 4;
  unsigned part[PARTS] = {};

  static __device__ __forceinline__ Word read(const unsigned char* place) {
    Word word;
    if (BYTES == 1) word.part[0] = *place;
    if (BYTES == 2) word.part[0] = load<unsigned short>(place);
    if (BYTES == 4) word.part[0] = load<unsigned>(place);
    if (BYTES == 8) {
      const uint2 both = load<uint2>(place);
      word.part[0] = both.x, word.part[1 % PARTS] = both.y;
    }
#pragma unroll
    for (int k = 0; k < BYTES / 16; ++k) {
      const uint4 four = load<uint4>(place + 16 * k);
      word.part[4 * k] = four.x, word.part[(4 * k + 1) % PARTS] = four.y;
      word.part[(4 * k + 2) % PARTS] = four.z, word.part[(4 * k + 3) % PARTS] = four.w;
    }
    return word;
  }
};

__device__ __forceinline__ void report(unsigned* flag, unsigned what) {
  atomicOr(flag, what);
}

// As an unsigned number, a negative id is beyond every table.
__device__ __forceinline__ bool is_row(long long id, long long rows) {
  return (unsigned long long)id < (unsigned long long)rows;
}

template <class Format, typename Id>
__global__ void read_rows(const unsigned char* __restrict__ table, int stride,
                          long long rows, int dim, const Id* __restrict__ ids,
                          long long count, float* __restrict__ out, unsigned* flag) {
  constexpr int E = Format::ENTRIES, AHEAD = 4;
  const long long block = (long long)blockIdx.x * AHEAD * blockDim.y;
  for (int piece = threadIdx.x; piece * E < dim; piece += blockDim.x) {
    typename Format::Piece pieces[AHEAD];
    bool wanted[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const long long place = block + (long long)k * blockDim.y + threadIdx.y;
      wanted[k] = place < count;
      if (!wanted[k]) continue;
      const long long id = ids[place];
      if (!is_row(id, rows)) {
        report(flag, BAD_ID);
        wanted[k] = false;
      } else {
        pieces[k] = Format::read(table + id * stride, piece, dim);
      }
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (!wanted[k]) continue;
      const long long place = block + (long long)k * blockDim.y + threadIdx.y;
      float* target = out + place * dim + piece * E;
      float values[E];
#pragma unroll
      for (int j = 0; j < E; ++j) values[j] = pieces[k].value(j);
      if (E % 4 == 0 && dim % 4 == 0 && piece * E + E <= dim) {
#pragma unroll
        for (int j = 0; j < E / 4; ++j)
          __stcs(reinterpret_cast<float4*>(target) + j,
                 make_float4(values[4 * j], values[4 * j + 1], values[4 * j + 2],
                             values[4 * j + 3]));
      } else {
        for (int j = 0; j < E && piece * E + j < dim; ++j) target[j] = values[j];
      }
    }
  }
}

// First and last place of a bag; an impossible one is reported and taken as empty.
__device__ __forceinline__ void find_bag(const long long* offsets, long long bag,
                                         long long bags, long long count,
                                         long long& first, long long& last,
                                         unsigned* flag) {
  first = offsets[bag];
  last = bag + 1 < bags ? offsets[bag + 1] : count;
  if (first < 0 || last > count || first > last || (bag == 0 && first != 0)) {
    report(flag, BAD_OFFSET);
    first = last = 0;
  }
}

template <int E>
__device__ __forceinline__ void write_piece(float* target, const float (&values)[E],
                                            int left, int dim) {
  if (E % 4 == 0 && dim % 4 == 0 && left >= E) {
#pragma unroll
    for (int j = 0; j < E / 4; ++j)
      reinterpret_cast<float4*>(target)[j] = make_float4(
          values[4 * j], values[4 * j + 1], values[4 * j + 2], values[4 * j + 3]);
  } else {
#pragma unroll
    for (int j = 0; j < E; ++j)
      if (j < left) target[j] = values[j];
  }
}

template <class Format, typename Id>
__global__ void pool_rows(const unsigned char* __restrict__ table, int stride,
                          long long rows, int dim, const Id* __restrict__ ids,
                          long long count, const long long* __restrict__ offsets,
                          long long bags, const float* __restrict__ weights, int mean,
                          float* __restrict__ out, unsigned* flag) {
  constexpr int E = Format::ENTRIES, AHEAD = Format::AHEAD;
  const long long bag = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (bag >= bags) return;
  long long first, last;
  find_bag(offsets, bag, bags, count, first, last, flag);
  const Id* own = ids + first;
  const int length = last - first;
  for (int piece = threadIdx.x; piece * E < dim; piece += blockDim.x) {
    typename Format::Sum sum;
    for (int start = 0; start < length; start += AHEAD) {
      typename Format::Piece pieces[AHEAD];
      float factors[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        factors[k] = 0.0f;
        pieces[k] = typename Format::Piece();
        if (start + k >= length) continue;
        const long long id = own[start + k];
        if (!is_row(id, rows)) {
          report(flag, BAD_ID);
        } else {
          factors[k] = weights ? weights[first + start + k] : 1.0f;
          pieces[k] = Format::read(table + id * stride, piece, dim);
        }
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) sum.add(pieces[k], factors[k]);
    }
    const float scale = mean && length ? 1.0f / length : 1.0f;
    float values[E];
#pragma unroll
    for (int j = 0; j < E; ++j) values[j] = sum.value(j) * scale;
    write_piece<E>(out + bag * dim + piece * E, values, dim - piece * E, dim);
  }
}

template <class Format, typename Id>
__global__ void max_rows(const unsigned char* __restrict__ table, int stride,
                         long long rows, int dim, const Id* __restrict__ ids,
                         long long count, const long long* __restrict__ offsets,
                         long long bags, float* __restrict__ out, unsigned* flag) {
  constexpr int E = Format::ENTRIES;
  const long long bag = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (bag >= bags) return;
  long long first, last;
  find_bag(offsets, bag, bags, count, first, last, flag);
  for (int piece = threadIdx.x; piece * E < dim; piece += blockDim.x) {
    float largest[E];
#pragma unroll
    for (int j = 0; j < E; ++j) largest[j] = 0.0f;
    for (long long place = first; place < last; ++place) {
      const long long id = ids[place];
      if (!is_row(id, rows)) {
        report(flag, BAD_ID);
        continue;
      }
      const auto row = Format::read(table + id * stride, piece, dim);
#pragma unroll
      for (int j = 0; j < E; ++j) {
        const float value = row.value(j);
        largest[j] = place == first ? value : fmaxf(largest[j], value);
      }
    }
    write_piece<E>(out + bag * dim + piece * E, largest, dim - piece * E, dim);
  }
}
