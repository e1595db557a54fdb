// Attention over some of the cached tokens on the CPU, in pieces of tokens and of queries.
#pragma once
#include <cstdint>

#include "cache.h"

constexpr int64_t BLOCK = 32;  // tokens that are attended to at a time

// All arguments of a call. Queries of a KV head are rows: row r is head r % shared of query
// r / shared.
template <class T>
struct Step {
  const T *far_q, *q, *k, *v;
  int64_t q_strides[3];                // batch, query, head; both kinds of queries
  int64_t k_strides[3], v_strides[3];  // block, token, head
  int64_t queries, groups, shared, dim;
  const Pages& pages;
  const Ranges& ranges;   // the window
  const Integers* index;  // (B, listed); no far tokens without it
  int64_t listed, initial;
  const PerSequence* far_end;  // far tokens end there
  const float *cos, *sin;      // (places, dim / 2) or null
  float scale;
};

// Rows `row` to `row_end` of the heads `group` to `group_end` attend to far tokens or to window
// tokens, `first` to `last` of these.
struct Piece {
  int64_t b, group, group_end, row, row_end, first, last;
  bool far;
  float* out;   // (group_end - group, row_end - row, dim): not yet divided by the sum
  float* best;  // (group_end - group, row_end - row, 2): largest score, sum of exponentials
};
