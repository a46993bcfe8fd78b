// Rows that are named by codes: codewords side by side, or added up.

#pragma once

#include "reading.cuh"

template <int E, class Codes, class Words, bool ADDED> struct Codebook {
  static constexpr int ENTRIES = E, AHEAD = 2;
  using Fields = CodebookFields<Codes, Words>;
  Codes codes;
  Words words;
  const int* first_words;      // of each group and book
  const long long* starts;     // first id of each group
  int books, width, groups;

  __device__ __forceinline__ Codebook(const Fields& f, int)
      : codes(f.codes, f.books), words(f.words, f.width),
        first_words(array<int>(f.firsts)), starts(array<long long>(f.starts)),
        books(f.books), width(f.width), groups(f.groups) {}

  struct Place {
    typename Codes::Place row;
    int firsts;    // where the first codewords of its group's books are listed
  };

  __device__ __forceinline__ Place find(long long id) const {
    Place found = {codes.find(id), 0};
    if (groups > 1) found.firsts = (search(starts, 0, groups, id + 1) - 1) * books;
    return found;
  }

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const { announce_row(codes, id); }
  __forceinline__ void fetch(const Place& found) const { fetch_row(codes, found.row); }
#endif

  // The codeword that code `book` of a row names.
  __device__ __forceinline__ typename Words::Place codeword(const Place& found,
                                                            int book) const {
    return words.find(__ldg(first_words + found.firsts + book) +
                      codes.number(found.row, book));
  }

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    const int book = ADDED ? 0 : first / width;
    words.read(codeword(found, book), first - book * width, entries);
    if (!ADDED) return;
    for (int book = 1; book < books; ++book) {
      float more[E];
      words.read(codeword(found, book), first, more);
#pragma unroll
      for (int j = 0; j < E; ++j) entries[j] += more[j];
    }
  }
};
