// Look-ups and bags on a processor, of every format that the headers can read.
//
// A row is found some places before it is read, and its bytes are fetched meanwhile:
// tables are far larger than what a processor holds. What it takes to find a row is
// itself fetched as many places before, where it is stored.

constexpr int PLAIN_SUM = 0, WEIGHTED = 1, LARGEST = 2;

// What a call is about.
struct Call {
  long long rows;
  int dim;
  const long long* ids;
  long long count;
  unsigned* flag;
};

// Places of the next rows, each found once.
template <class Format> struct Window {
  using Place = decltype(declare<const Format&>().find(0));
  static constexpr int AHEAD = 16;
  const Format& format;
  const Call& call;
  long long last;    // rows up to here are wanted
  alignas(16) char places[AHEAD * sizeof(Place)];

  __forceinline__ Window(const Format& format, const Call& call, long long first,
                         long long last)
      : format(format), call(call), last(last) {
    for (long long at = first; at < first + AHEAD; ++at) announce(at);
    for (long long at = first; at < last && at < first + AHEAD; ++at) find(at);
  }

  __forceinline__ void announce(long long at) {
    if constexpr (has_announce<Format>(nullptr))
      if (at < last && is_row(call.ids[at], call.rows)) format.announce(call.ids[at]);
  }

  __forceinline__ void find(long long at) {
    announce(at + AHEAD);
    long long id = call.ids[at];
    if (!is_row(id, call.rows)) {
      report(call.flag, BAD_ID);
      id = 0;
    }
    const Place found = format.find(id);
    fetch_row(format, found);
    memcpy(places + at % AHEAD * sizeof(Place), &found, sizeof(Place));
  }

  // The place of a row, whose room the next one takes that is not found yet.
  __forceinline__ Place take(long long at) {
    Place found;
    memcpy(&found, places + at % AHEAD * sizeof(Place), sizeof(Place));
    if (at + AHEAD < last) find(at + AHEAD);
    return found;
  }
};

template <class Format>
void read_rows(const typename Format::Fields& fields, const Call& call, float* out) {
  constexpr int E = Format::ENTRIES;
  const Format format(fields, call.dim);
  Window<Format> window(format, call, 0, call.count);
  for (long long at = 0; at < call.count; ++at, out += call.dim) {
    const auto found = window.take(at);
    for (int first = 0; first < call.dim; first += E) {
      float entries[E];
      format.read(found, first, entries);
      memcpy(out + first, entries, sizeof entries);
    }
  }
}

// Bags of a call: `borders` places where one begins, or the last one ends.
struct Bags {
  const long long* offsets;
  long long borders, padding;    // an id that no bag reads; -1: none
  const float* weights;
  bool mean;
};

// What rows are joined to: -0, which leaves -0 as it is, or less than any number.
template <int WAY> constexpr float start_of() { return WAY == LARGEST ? -__builtin_inff() : -0.0f; }

template <int WAY, int E>
__forceinline__ void join(const float (&entries)[E], float factor, float (&pooled)[E]) {
  for (int j = 0; j < E; ++j) {
    if (WAY == LARGEST) pooled[j] = pooled[j] < entries[j] ? entries[j] : pooled[j];
    else pooled[j] += WAY == WEIGHTED ? factor * entries[j] : entries[j];
  }
}

// The rows of one bag joined, in their order; how many there are.
//
// Where all entries of a row are read at once, they stay in registers until the bag
// ends.  Otherwise some rows are found first, and then read piece by piece: what the
// rows have in common at a piece is worked out once.  Rows that are mostly 0 are added
// where they are not.
template <class Format, int WAY>
__forceinline__ long long pool_whole(const Format& format, const Call& call,
                                     const Bags& bags, Window<Format>& window,
                                     long long begin, long long end, float* out) {
  constexpr int E = Format::ENTRIES;
  float sums[E];
  for (int j = 0; j < E; ++j) sums[j] = start_of<WAY>();
  long long joined = 0;
  for (long long at = begin; at < end; ++at) {
    const auto found = window.take(at);
    if (call.ids[at] == bags.padding) continue;
    ++joined;
    float entries[E];
    format.read(found, 0, entries);
    join<WAY>(entries, WAY == WEIGHTED ? bags.weights[at] : 1.0f, sums);
  }
  memcpy(out, sums, sizeof sums);
  return joined;
}

template <class Format, int WAY>
__forceinline__ long long pool_parts(const Format& format, const Call& call,
                                     const Bags& bags, Window<Format>& window,
                                     long long begin, long long end, float* out) {
  memset(out, 0, call.dim * sizeof(float));
  long long joined = 0;
  for (long long at = begin; at < end; ++at) {
    const auto found = window.take(at);
    if (call.ids[at] == bags.padding) continue;
    ++joined;
    format.add(found, WAY == WEIGHTED ? bags.weights[at] : 1.0f, out);
  }
  return joined;
}

template <class Format, int WAY>
__forceinline__ long long pool_pieces(const Format& format, const Call& call,
                                      const Bags& bags, Window<Format>& window,
                                      long long begin, long long end, float* out) {
  constexpr int E = Format::ENTRIES, SOME = 32;
  using Place = typename Window<Format>::Place;
  for (int c = 0; c < call.dim; ++c) out[c] = start_of<WAY>();
  long long joined = 0;
  while (begin < end) {
    alignas(16) char room[SOME * sizeof(Place)];
    Place* places = reinterpret_cast<Place*>(room);
    float factors[SOME];
    int many = 0;
    for (; begin < end && many < SOME; ++begin) {
      const Place found = window.take(begin);
      if (call.ids[begin] == bags.padding) continue;
      if (WAY == WEIGHTED) factors[many] = bags.weights[begin];
      memcpy(static_cast<void*>(places + many++), &found, sizeof found);
    }
    for (int first = 0; first < call.dim; first += E) {
      float sums[E], entries[E];
      memcpy(sums, out + first, sizeof sums);
      for (int k = 0; k < many; ++k) {
        format.read(places[k], first, entries);
        join<WAY>(entries, WAY == WEIGHTED ? factors[k] : 1.0f, sums);
      }
      memcpy(out + first, sums, sizeof sums);
    }
    joined += many;
  }
  return joined;
}

template <class Format, int WAY, bool WHOLE>
void pool_bags(const Format& format, const Call& call, const Bags& bags,
               long long first, long long last, float* out) {
  const auto border = [&](long long bag) {
    return bag < bags.borders ? bags.offsets[bag] : call.count;
  };
  long long begin = border(first), stop = border(last);
  if (begin < 0 || begin > stop || stop > call.count || (first == 0 && begin)) {
    report(call.flag, BAD_OFFSET);
    return;
  }
  Window<Format> window(format, call, begin, stop);
  for (long long bag = first; bag < last; ++bag, out += call.dim) {
    const long long end = border(bag + 1);
    if (end < begin || end > stop) {
      report(call.flag, BAD_OFFSET);
      return;
    }
    long long joined;
    if constexpr (adds<Format>(nullptr) && WAY != LARGEST)
      joined = pool_parts<Format, WAY>(format, call, bags, window, begin, end, out);
    else if constexpr (WHOLE)
      joined = pool_whole<Format, WAY>(format, call, bags, window, begin, end, out);
    else
      joined = pool_pieces<Format, WAY>(format, call, bags, window, begin, end, out);
    if (!joined) memset(out, 0, call.dim * sizeof(float));
    if (bags.mean && joined > 1)
      for (int c = 0; c < call.dim; ++c) out[c] /= (float)joined;
    begin = end;
  }
}

template <class Format, int WAY>
void pool_some(const typename Format::Fields& fields, const Call& call,
               const Bags& bags, long long first, long long last, float* out) {
  const Format format(fields, call.dim);
  if (call.dim == Format::ENTRIES)
    pool_bags<Format, WAY, true>(format, call, bags, first, last, out);
  else
    pool_bags<Format, WAY, false>(format, call, bags, first, last, out);
}

extern "C" void read(const FORMAT::Fields* fields, long long rows, int dim,
                     const long long* ids, long long count, float* out,
                     unsigned* flag) {
  read_rows<FORMAT>(*fields, {rows, dim, ids, count, flag}, out);
}

extern "C" void pool(const FORMAT::Fields* fields, long long rows, int dim,
                     const long long* ids, long long count, const long long* offsets,
                     long long borders, long long first, long long last,
                     const float* weights, int mode, long long padding, float* out,
                     unsigned* flag) {
  const Call call = {rows, dim, ids, count, flag};
  const Bags bags = {offsets, borders, padding, weights, mode == MEAN};
  const auto way = mode == MAX ? pool_some<FORMAT, LARGEST>
                   : weights   ? pool_some<FORMAT, WEIGHTED>
                               : pool_some<FORMAT, PLAIN_SUM>;
  way(*fields, call, bags, first, last, out);
}
