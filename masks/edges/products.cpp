// Products of a few gates with very long rows, for `masks/edges/products.py`.
//
//   mix_rows       read[r, t] = sum_w g[r, w] x[w, t], and |read[r, t]|^2; or that and
//                  x0[t] added to what read[r, t] holds
//   through_reads  dL/dg[r, w] = sum_t <x[w, t], dL/dread[r, t]>
//                  D[w, t] (+)= sum_r g[r, w] dL/dread[r, t]
//   item_products  rows[i] = factors[i] rows[i] + left[i] right[i], one product a row
//
// A row is what one writer wrote for all tokens, far longer than a cache, and a product
// has some dozens of them: it takes about as long to fetch its rows as to multiply. The
// loops below prefetch the next columns while they multiply these, and leave the rows
// where they are; a general product copies them into its own order first.
// Numbers are float32. A row is contiguous; `*_stride` numbers lead to the next one.
// Symbols: docs/edge_engine.md.

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16, tile_rows = 13, tile_dots = 5;  // of 32 registers
#elif defined(__AVX__)
constexpr int lanes = 8, tile_rows = 6, tile_dots = 3;  // of 16
#elif defined(__aarch64__)
constexpr int lanes = 4, tile_rows = 13, tile_dots = 5;
#else
constexpr int lanes = 4, tile_rows = 6, tile_dots = 3;
#endif
constexpr int chunk = 2 * lanes;  // columns of one tile
constexpr int block = 256;        // columns whose rows stay in a core's cache
constexpr int panel = 144;        // rows of a block that are multiplied at a time
constexpr int line = 16;          // numbers in a cache line
constexpr int panel_reads = 4 * tile_dots;  // whose blocks fit the first-level cache
constexpr int copy_stride = block + line;  // rows of a copy begin in different sets

typedef float vec __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
typedef std::ptrdiff_t size;

#define UNROLL _Pragma("GCC unroll 16")

class Scratch {  // memory that is freed at the end of its scope
 public:
  explicit Scratch(size n_floats)
      : data_(operator new(sizeof(float) * (n_floats > 0 ? n_floats : 1),
                           std::align_val_t(64))) {}
  ~Scratch() { operator delete(data_, std::align_val_t(64)); }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  float *floats() const { return static_cast<float *>(data_); }
  vec *vecs() const { return static_cast<vec *>(data_); }

 private:
  void *data_;
};

inline vec load(const float *from) { return *reinterpret_cast<const vec *>(from); }
inline void store(float *to, vec value) { *reinterpret_cast<vec *>(to) = value; }

inline float sum(vec value) {
  float total = 0;
  for (int i = 0; i < lanes; i++) total += value[i];
  return total;
}

inline int smaller(size a, size b) { return static_cast<int>(a < b ? a : b); }

// Rows to prefetch: `n` of them, `columns` numbers of each.
struct Next {
  const float *first;
  size stride;
  int n, columns;
};

inline void prefetch(const Next &next, int row) {
  const float *from = next.first + row * next.stride;
  for (int j = 0; j < next.columns; j += line) __builtin_prefetch(from + j, 0, 2);
}

// What a tile adds its products to: nothing, what is there, that times a factor, or that
// and one row more.
enum Start { zero, as_is, scaled, onto };

// out[r][j] = start + sum over k of left[k][r] * right[k][j]     r < R, j < n
// squares[r] += sum over j of out[r][j]^2, lane by lane, if `squared`.
// `factor`: a number a row (`scaled`), or the row that is added, factor[j] (`onto`).
// `next_out` are rows of `out` to prefetch.
template <int R, Start start, bool squared>
void tile(float *out, size out_stride, const float *right, size right_stride,
          const float *left, int n_inner, int n, const float *factor, vec *squares,
          const Next &next, const Next &next_out) {
  const int n_chunks = n / chunk;
  int fetched = 0, fetched_out = 0;
  for (int c = 0; c < n_chunks; c++, out += chunk, right += chunk) {
    for (const int stop = (c + 1) * next.n / n_chunks; fetched < stop; fetched++)
      prefetch(next, fetched);
    for (const int stop = (c + 1) * next_out.n / n_chunks; fetched_out < stop;
         fetched_out++)
      prefetch(next_out, fetched_out);
    vec total[R][2];  // R rows of one chunk of columns, in registers
    UNROLL for (int r = 0; r < R; r++) {
      UNROLL for (int v = 0; v < 2; v++) {
        if (start == zero) total[r][v] = vec{};
        else total[r][v] = load(out + r * out_stride + v * lanes);
        if (start == scaled) total[r][v] *= factor[r];
        if (start == onto) total[r][v] += load(factor + c * chunk + v * lanes);
      }
    }
    const float *row = right, *weights = left;
    for (int k = 0; k < n_inner; k++, row += right_stride, weights += R) {
      const vec a = load(row), b = load(row + lanes);
      UNROLL for (int r = 0; r < R; r++) {
        total[r][0] += weights[r] * a;
        total[r][1] += weights[r] * b;
      }
    }
    UNROLL for (int r = 0; r < R; r++) {
      store(out + r * out_stride, total[r][0]);
      store(out + r * out_stride + lanes, total[r][1]);
      if (squared)
        squares[r] += total[r][0] * total[r][0] + total[r][1] * total[r][1];
    }
  }
  for (; fetched < next.n; fetched++) prefetch(next, fetched);
  for (int j = 0; j < n - n_chunks * chunk; j++) {  // fewer columns than a chunk
    for (int r = 0; r < R; r++) {
      float *to = out + r * out_stride + j;
      float total = start == zero ? 0 : start == scaled ? factor[r] * *to : *to;
      if (start == onto) total += factor[n_chunks * chunk + j];
      for (int k = 0; k < n_inner; k++)
        total += left[k * R + r] * right[k * right_stride + j];
      *to = total;
      if (squared) squares[r][0] += total * total;
    }
  }
}

typedef void (*Tile)(float *, size, const float *, size, const float *, int, int,
                     const float *, vec *, const Next &, const Next &);
constexpr Next nothing = {nullptr, 0, 0, 0};

template <Start start, bool squared, int... R>
Tile tile_of(int rows, std::integer_sequence<int, R...>) {
  static const Tile tiles[] = {tile<R + 1, start, squared>...};
  return tiles[rows - 1];
}

template <Start start, bool squared>
Tile tile_of(int rows) {
  return tile_of<start, squared>(rows, std::make_integer_sequence<int, tile_rows>());
}

// Rows of a tile, at most tile_rows, so that all tiles of `n_rows` are about as high.
inline int tile_height(int n_rows) {
  const int n_tiles = (n_rows + tile_rows - 1) / tile_rows;
  return (n_rows + n_tiles - 1) / n_tiles;
}

// left[r][k] into tiles of `height` rows, each as `tile` reads it: to[k][r].
void pack(float *to, const float *left, size row_stride, size inner_stride, int n_rows,
          int n_inner, int height) {
  for (int first = 0; first < n_rows; first += height) {
    const int rows = smaller(n_rows - first, height);
    for (int k = 0; k < n_inner; k++)
      for (int r = 0; r < rows; r++)
        *to++ = left[(first + r) * row_stride + k * inner_stride];
  }
}

// part[r][k] += sum over j of d[r][j] * h[k][j], lane by lane     r < R, k < K, j < n
template <int R, int K>
void dots(vec *part, size part_stride, const float *d, size d_stride, const float *h,
          size h_stride, int n) {
  vec total[R][K];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int k = 0; k < K; k++) total[r][k] = part[r * part_stride + k];
  int j = 0;
  for (; j + lanes <= n; j += lanes) {
    vec b[K];
    UNROLL for (int k = 0; k < K; k++) b[k] = load(h + k * h_stride + j);
    UNROLL for (int r = 0; r < R; r++) {
      const vec a = load(d + r * d_stride + j);
      UNROLL for (int k = 0; k < K; k++) total[r][k] += a * b[k];
    }
  }
  for (; j < n; j++)
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int k = 0; k < K; k++)
        total[r][k][0] += d[r * d_stride + j] * h[k * h_stride + j];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int k = 0; k < K; k++) part[r * part_stride + k] = total[r][k];
}

typedef void (*Dots)(vec *, size, const float *, size, const float *, size, int);

template <int... I>
Dots dots_of(int rows, int columns, std::integer_sequence<int, I...>) {
  static const Dots all[] = {dots<I / tile_dots + 1, I % tile_dots + 1>...};
  return all[(rows - 1) * tile_dots + columns - 1];
}

Dots dots_of(int rows, int columns) {
  return dots_of(rows, columns,
                 std::make_integer_sequence<int, tile_dots * tile_dots>());
}

// `through_reads` of some rows.
void through_panel(float *d_gates, size d_gate_stride, const float *rows, size row_stride, float *d_rows,
                   size d_row_stride, const float *gates, size gate_row_stride,
                   size gate_inner_stride, int add, const float *d_reads,
                   size d_read_stride, int n_reads, int n_rows, size n_columns,
                   int n_threads) {
  const size n_gates = size(n_reads) * n_rows;
  const int height = tile_height(n_rows);
  Scratch packed(d_rows ? n_gates : 0), parts(d_gates ? n_gates * n_threads * lanes : 0);
  if (d_rows)
    pack(packed.floats(), gates, gate_inner_stride, gate_row_stride, n_rows, n_reads,
         height);
  const size n_blocks = (n_columns + block - 1) / block;
#pragma omp parallel num_threads(n_threads)
  {
#pragma omp for schedule(static)
    for (int thread = 0; thread < n_threads; thread++) {
      vec *part = parts.vecs() + (d_gates ? n_gates * thread : 0);
      if (d_gates) std::memset(static_cast<void *>(part), 0, sizeof(vec) * n_gates);
      // the block's d_reads, whose rows may all begin in one set of the cache
      Scratch copy(size(n_reads) * copy_stride);
      const size stop = n_blocks * (thread + 1) / n_threads;
      for (size i = n_blocks * thread / n_threads; i < stop; i++) {
        const size start = i * block;
        const int n = smaller(n_columns - start, block);
        const int n_next = i + 1 < stop ? smaller(n_columns - start - n, block) : 0;
        for (int r = 0; r < n_reads; r++)
          std::memcpy(copy.floats() + r * copy_stride,
                      d_reads + r * d_read_stride + start, n * sizeof(float));
        const Next next_reads = {d_reads + start + n, d_read_stride, n_reads, n_next};
        // readers in panels, which stay in the first-level cache while all rows pass
        for (int r0 = 0; d_gates && r0 < n_reads; r0 += panel_reads) {
          const int r1 = r0 + smaller(n_reads - r0, panel_reads);
          int fetched_reads = r0;
          for (int k = 0; k < n_rows; k += tile_dots) {
            // part[r][k] += <d_reads[r], rows[k]> of the block
            const int n_writers = smaller(n_rows - k, tile_dots);
            const float *columns = rows + k * row_stride + start;
            const Next next = {columns + n, row_stride, n_next && r1 == n_reads ? n_writers : 0,
                               n_next};
            for (const int until = r0 + size(r1 - r0) * (k + n_writers) / n_rows;
                 n_next && fetched_reads < until; fetched_reads++)
              prefetch(next_reads, fetched_reads);
            int fetched = 0;
            for (int r = r0; r < r1; r += tile_dots) {
              if (fetched < next.n) prefetch(next, fetched++);
              const int n_readers = smaller(r1 - r, tile_dots);
              dots_of(n_readers, n_writers)(part + size(r) * n_rows + k, n_rows,
                                            copy.floats() + r * copy_stride, copy_stride,
                                            columns, row_stride, n);
            }
            for (; fetched < next.n; fetched++) prefetch(next, fetched);
          }
        }
        for (int first = 0; d_rows && first < n_rows; first += height) {
          // d_rows[k] (+)= sum over r of gates[r][k] * d_reads[r] of the block
          const int n_tile = smaller(n_rows - first, height);
          float *to = d_rows + first * d_row_stride + start;
          const Next next = {to + n, d_row_stride, n_next && add ? n_tile : 0, n_next};
          const Tile run =
              add ? tile_of<as_is, false>(n_tile) : tile_of<zero, false>(n_tile);
          run(to, d_row_stride, copy.floats(), copy_stride,
              packed.floats() + size(first) * n_reads, n_reads, n, nullptr, nullptr, next,
              nothing);
        }
      }
    }
    if (d_gates) {  // sums over threads, then over lanes
#pragma omp for schedule(static)
      for (size i = 0; i < n_gates; i++) {
        vec total = parts.vecs()[i];
        for (int thread = 1; thread < n_threads; thread++)
          total += parts.vecs()[n_gates * thread + i];
        d_gates[i / n_rows * d_gate_stride + i % n_rows] = sum(total);
      }
    }
  }
}

}  // namespace

extern "C" {

// out[r][j] = sum over k of gates[r][k] * rows[k][j]     j < n_tokens * width
// With `always`: out[r][j] += always[j] + that sum.
// squares[r][t] = sum over the columns j of token t of out[r][j]^2, where given.
// A thread takes a range of columns, whole tokens where there are squares.
void mix_rows(float *out, size out_stride, const float *gates, size gate_row_stride,
              size gate_inner_stride, const float *rows, size row_stride, int n_out,
              int n_rows, size n_tokens, size width, const float *always, float *squares,
              int n_threads) {
  if (n_out == 0) return;
  const int height = tile_height(n_out);
  const int n_panels = (n_rows + panel - 1) / panel;
  const int height_inner = n_panels ? (n_rows + n_panels - 1) / n_panels : panel;
  Scratch packed(size(n_out) * n_rows);
  pack(packed.floats(), gates, gate_row_stride, gate_inner_stride, n_out, n_rows, height);
  if (!squares) {  // all tokens in one row of columns
    width *= n_tokens;
    n_tokens = 1;
  }
  const size per_token = (width + block - 1) / block;  // blocks of columns
  const size n_units = squares ? n_tokens : per_token;
  const size per_unit = squares ? per_token : 1;
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int thread = 0; thread < n_threads; thread++) {
    Scratch sums(squares ? size(n_out) * lanes : 0);
    const size stop = n_units * (thread + 1) / n_threads * per_unit;
    for (size i = n_units * thread / n_threads * per_unit; i < stop; i++) {
      const size token = i / per_token, within = i % per_token * block;
      const int n = smaller(width - within, block);
      const float *columns = rows + token * width + within;
      float *to = out + token * width + within;
      const int n_next = i + 1 < stop ? smaller(block, width) : 0;
      if (squares && within == 0)
        std::memset(sums.floats(), 0, sizeof(vec) * n_out);
      // rows in panels: one panel and the gates of a tile fit the first-level cache
      for (int inner = 0; inner < n_rows || inner == 0; inner += height_inner) {
        const int n_inner = smaller(n_rows - inner, height_inner);
        const bool is_last = inner + n_inner == n_rows;
        const float *to_add = always && inner == 0 ? always + token * width + within : nullptr;
        for (int first = 0; first < n_out; first += height) {
          const int n_tile = smaller(n_out - first, height);
          // this tile prefetches its part of the panel's next block
          const int from = static_cast<int>(size(n_inner) * first / n_out);
          const int until = static_cast<int>(size(n_inner) * (first + n_tile) / n_out);
          const Next next = {columns + n + (inner + from) * row_stride, row_stride,
                             n_next ? until - from : 0, n_next};
          float *tile_out = to + first * out_stride;
          const Next next_out = {tile_out + n, out_stride, to_add && n_next ? n_tile : 0,
                                 n_next};
          const bool squared = squares && is_last;
          Tile run = squared ? tile_of<zero, true>(n_tile) : tile_of<zero, false>(n_tile);
          if (to_add)
            run = squared ? tile_of<onto, true>(n_tile) : tile_of<onto, false>(n_tile);
          else if (inner > 0)
            run = squared ? tile_of<as_is, true>(n_tile) : tile_of<as_is, false>(n_tile);
          run(tile_out, out_stride, columns + inner * row_stride, row_stride,
              packed.floats() + size(first) * n_rows + size(inner) * n_tile, n_inner, n,
              to_add, sums.vecs() + (squares ? first : 0), next, next_out);
        }
      }
      if (squares && within + n == width)
        for (int r = 0; r < n_out; r++)
          squares[r * n_tokens + token] = sum(sums.vecs()[r]);
    }
  }
}

// From the gradient of reads to that of gates and of the rows that were read:
// d_gates[r][k] = sum over j of d_reads[r][j] * rows[k][j]           unless d_gates is 0
// d_rows[k][j] (+)= sum over r of gates[r][k] * d_reads[r][j]        unless d_rows is 0
// A thread takes a range of columns j; its d_gates are added up at the end.
void through_reads(float *d_gates, const float *rows, size row_stride, float *d_rows,
                   size d_row_stride, const float *gates, size gate_row_stride,
                   size gate_inner_stride, int add, const float *d_reads,
                   size d_read_stride, int n_reads, int n_rows, size n_columns,
                   int n_threads) {
  if (n_reads == 0 || n_rows == 0) return;
  const int n_panels = (n_rows + panel - 1) / panel;
  const int height = (n_rows + n_panels - 1) / n_panels;
  for (int k = 0; k < n_rows; k += height)
    through_panel(d_gates ? d_gates + k : nullptr, n_rows,
                  rows ? rows + k * row_stride : nullptr, row_stride,
                  d_rows ? d_rows + k * d_row_stride : nullptr, d_row_stride,
                  gates + k * gate_inner_stride, gate_row_stride, gate_inner_stride, add,
                  d_reads, d_read_stride, n_reads, smaller(n_rows - k, height),
                  n_columns, n_threads);
}

// out[i][t][j] = factor[i][t] * out[i][t][j] + sum over k of left[i][t][k] * right[i][k][j]
// Without factors the sum alone. Strides: of i, of t (right: of k), of k.  j < width
void item_products(float *out, const size *out_strides, const float *left,
                   const size *left_strides, const float *right,
                   const size *right_strides, const float *factor, int n_items,
                   int n_tokens, int n_inner, int width, int n_threads) {
  if (n_tokens == 0) return;
  const int height = tile_height(n_tokens);
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int item = 0; item < n_items; item++) {
    const size right_copy_stride = width + line;  // rows begin in different sets
    Scratch packed(size(n_tokens) * n_inner), copy(n_inner * right_copy_stride);
    pack(packed.floats(), left + item * left_strides[0], left_strides[1],
         left_strides[2], n_tokens, n_inner, height);
    for (int k = 0; k < n_inner; k++)
      std::memcpy(copy.floats() + k * right_copy_stride,
                  right + item * right_strides[0] + k * right_strides[1],
                  width * sizeof(float));
    for (int first = 0; first < n_tokens; first += height) {
      const int n_tile = smaller(n_tokens - first, height);
      float *to = out + item * out_strides[0] + first * out_strides[1];
      const int n_next = factor ? smaller(n_tokens - first - n_tile, height) : 0;
      const Next next = {to + n_tile * out_strides[1], out_strides[1], n_next, width};
      const Tile run =
          factor ? tile_of<scaled, false>(n_tile) : tile_of<zero, false>(n_tile);
      run(to, out_strides[1], copy.floats(), right_copy_stride,
          packed.floats() + size(first) * n_inner, n_inner, width,
          factor ? factor + size(item) * n_tokens + first : nullptr, nullptr, next,
          nothing);
    }
  }
}

}  // extern "C"
