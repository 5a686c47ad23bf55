/* Eq. 13 for CPUs, each function one pass over memory; see fixed_grid_compiled.py.
 *
 * Results are those of fixed_grid_plain.py to the bit: the same IEEE operations in the same order,
 * so the build forbids contraction and allows no reassociation. All arrays are dense and of one
 * layout; NaN stays NaN, as in torch.
 */
#include <math.h>
#include <stdint.h>

/* One binary for every machine that shares a cache folder; the loader picks the clone. */
#if defined(__x86_64__) && !defined(NO_CLONES)
#define EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_CPU
#endif

enum { CHUNK = 32768 }; /* elements given to a thread at a time: 128 KB of floats */

#ifdef _OPENMP
#define FOR_CHUNKS _Pragma("omp parallel for num_threads(threads) if(n > CHUNK && threads > 1)")
#define FOR_CHUNKS_SUM \
  _Pragma("omp parallel for num_threads(threads) if(n > CHUNK && threads > 1) reduction(+:total)")
int is_parallel(void) { return 1; }
#else
#define FOR_CHUNKS
#define FOR_CHUNKS_SUM
int is_parallel(void) { return 0; }
#endif

static int64_t length(int64_t start, int64_t n) { return n - start < CHUNK ? n - start : CHUNK; }

static inline float clipped(float quotient, float alpha, float beta) {
  quotient = quotient < alpha ? alpha : quotient;
  return quotient > beta ? beta : quotient;
}

EACH_CPU static void quantize_chunk(const float *restrict x, float *restrict out, int64_t n,
                                    float step, float alpha, float beta, float unit) {
  for (int64_t i = 0; i < n; i++) out[i] = rintf(clipped(x[i] / step, alpha, beta)) * unit;
}

EACH_CPU static void sign_chunk(const float *restrict x, float *restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] < 0 ? -1.0f : x[i] >= 0 ? 1.0f : x[i];
}

EACH_CPU static void gradient_chunk(const float *restrict grad, const float *restrict x,
                                    float *restrict out, int64_t n, float step, float scale,
                                    float alpha, float beta) {
  for (int64_t i = 0; i < n; i++) {
    float quotient = x[i] / step;
    out[i] = ((quotient < alpha) | (quotient > beta) ? 0.0f : grad[i]) / scale;
  }
}

/* Counts in 32 bits: the loop is then as wide as the floats. */
EACH_CPU static int32_t recode_chunk(const float *restrict x, uint8_t *restrict codes, int32_t n,
                                     float step, float alpha, float beta) {
  int32_t changed = 0;
  for (int32_t i = 0; i < n; i++) {
    uint8_t code = (uint8_t)(int32_t)rintf(clipped(x[i] / step, alpha, beta));
    changed += code != codes[i];
    codes[i] = code;
  }
  return changed;
}

EACH_CPU static int32_t resign_chunk(const float *restrict x, uint8_t *restrict codes, int32_t n) {
  int32_t changed = 0;
  for (int32_t i = 0; i < n; i++) {
    uint8_t code = (uint8_t)(x[i] < 0 ? -1 : 1);
    changed += code != codes[i];
    codes[i] = code;
  }
  return changed;
}

/* out = round(clip(x / step, alpha, beta)) * unit; with binary the sign of x. */
void quantize(const float *x, float *out, int64_t n, float step, float alpha, float beta,
              float unit, int binary, int threads) {
  FOR_CHUNKS
  for (int64_t i = 0; i < n; i += CHUNK) {
    if (binary) sign_chunk(x + i, out + i, length(i, n));
    else quantize_chunk(x + i, out + i, length(i, n), step, alpha, beta, unit);
  }
}

/* out = grad / scale where x / step is within alpha..beta, else 0. */
void gradient(const float *grad, const float *x, float *out, int64_t n, float step, float scale,
              float alpha, float beta, int threads) {
  FOR_CHUNKS
  for (int64_t i = 0; i < n; i += CHUNK)
    gradient_chunk(grad + i, x + i, out + i, length(i, n), step, scale, alpha, beta);
}

/* Overwrites codes (int8 or uint8) with those of x; returns how many changed. */
int64_t recode(const float *x, uint8_t *codes, int64_t n, float step, float alpha, float beta,
               int binary, int threads) {
  int64_t total = 0;
  FOR_CHUNKS_SUM
  for (int64_t i = 0; i < n; i += CHUNK)
    total += binary ? resign_chunk(x + i, codes + i, (int32_t)length(i, n))
                    : recode_chunk(x + i, codes + i, (int32_t)length(i, n), step, alpha, beta);
  return total;
}
