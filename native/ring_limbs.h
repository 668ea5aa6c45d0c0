/* The arithmetic of ring.c in double precision, with the fused multiply-add of AVX2 or of AArch64.
 *
 * Numbers of k bits are cut into limbs of `limb_bits` bits, the lower ones without a sign, the highest with one, so that the sum
 * of absolute products of a limb stays within 2^53 (the caller sees to it, ring/products.py): every sum is exact, in any order.
 * A limb is as good as one more position: the limbs of a few positions are the columns of a panel.
 */

#define ROW 8 /* outputs of a tile */

#if DR_X86_64
#define FMA_TARGET __attribute__((target("avx2,fma")))
#define LANES 4
typedef __m256d Doubles;
#define ZERO _mm256_setzero_pd()
#define LOAD(p) _mm256_loadu_pd(p)
#define STORE(p, v) _mm256_storeu_pd(p, v)
#define SPREAD(p) _mm256_broadcast_sd(p)
#define SPREAD_TWO(p, x) ((x)[0] = SPREAD(p), (x)[1] = SPREAD((p) + 1))
#define ADD_PRODUCT(total, a, b) _mm256_fmadd_pd(a, b, total)
/* ROW weights as doubles. */
FMA_TARGET static inline void widen_16(const int16_t *p, Doubles w[2]) {
    const __m256i row = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    w[0] = _mm256_cvtepi32_pd(_mm256_castsi256_si128(row));
    w[1] = _mm256_cvtepi32_pd(_mm256_extracti128_si256(row, 1));
}
FMA_TARGET static inline void widen_32(const int32_t *p, Doubles w[2]) {
    w[0] = _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(const void *)p));
    w[1] = _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(const void *)(p + 4)));
}
#else
#define FMA_TARGET
#define LANES 2
typedef float64x2_t Doubles;
#define ZERO vdupq_n_f64(0)
#define LOAD(p) vld1q_f64(p)
#define STORE(p, v) vst1q_f64(p, v)
#define SPREAD(p) vld1q_dup_f64(p)
#define SPREAD_TWO(p, x) spread_two(LOAD(p), x)
/* Both from one register, so that all columns and sums fit into thirty-two. */
static inline void spread_two(float64x2_t two, float64x2_t x[2]) {
    x[0] = vdupq_laneq_f64(two, 0);
    x[1] = vdupq_laneq_f64(two, 1);
}
#define ADD_PRODUCT(total, a, b) vfmaq_f64(total, a, b)
static inline void widen_four(int32x4_t four, Doubles w[2]) {
    w[0] = vcvtq_f64_s64(vmovl_s32(vget_low_s32(four)));
    w[1] = vcvtq_f64_s64(vmovl_high_s32(four));
}
static inline void widen_16(const int16_t *p, Doubles w[4]) {
    const int16x8_t row = vld1q_s16(p);
    widen_four(vmovl_s16(vget_low_s16(row)), w);
    widen_four(vmovl_high_s16(row), w + 2);
}
static inline void widen_32(const int32_t *p, Doubles w[4]) {
    widen_four(vld1q_s32(p), w);
    widen_four(vld1q_s32(p + 4), w + 2);
}
#endif

#define ROW_VECTORS (ROW / LANES)
#define MOST_TILE 6 /* columns of a tile: with ROW outputs, as many sums as there are registers */
#define FEW_VECTORS 4
#define FEW_TILE (LANES * FEW_VECTORS)
#define MOST_COLUMNS 48    /* a multiple of both tiles */
#define PANEL_BYTES 524288 /* of the second-level cache */

/* How many limbs numbers have. */
static size_t limbs_of(size_t bits, size_t limb_bits) { return bits < 3 ? 1 : (bits - 2) / limb_bits + 1; }

/* The limb of x that begins at bit `shift`. */
static double limb_of(uint64_t x, size_t shift, size_t bits, size_t limb_bits) {
    const size_t rest = bits - shift;
    x >>= shift;
    if (rest > limb_bits + 1) {
        return (double)(int64_t)(x & (((uint64_t)1 << limb_bits) - 1));
    }
    const uint64_t sign = (uint64_t)1 << (rest - 1), mask = sign | (sign - 1);
    return (double)(int64_t)(((x & mask) ^ sign) - sign);
}

/* padded[limb, image, channel, row, column], 0 outside the input. */
static void limbs_pad(const Job *job, const uint64_t *x) {
    const Shape *s = &job->s;
    const ptrdiff_t height = (ptrdiff_t)s->height, width = (ptrdiff_t)s->width;
    const ptrdiff_t down = (ptrdiff_t)job->padded_height, right = (ptrdiff_t)job->padded_width;
    ptrdiff_t first, last;
    inside(job, &first, &last);
    double *to = job->padded;
    for (size_t limb = 0; limb < job->limbs; limb++) {
        for (size_t plane = 0; plane < s->images * s->channels; plane++) {
            for (ptrdiff_t i = 0; i < down; i++, to += right) {
                const ptrdiff_t row = i - s->top;
                memset(to, 0, (size_t)right * sizeof *to);
                if (row < 0 || row >= height) {
                    continue;
                }
                const uint64_t *from = x + ((ptrdiff_t)plane * height + row) * width;
                for (ptrdiff_t j = first; j < last; j++) {
                    to[j] = limb_of(from[j - s->left], limb * s->limb_bits, s->bits, s->limb_bits);
                }
            }
        }
    }
}

/* A panel of tiles side by side: panel[tile, tap, column] = the input under that tap; columns that do not exist are 0. */
static void limbs_fill(const Job *job, const double *padded, const size_t *from, size_t columns, size_t tile, double *panel) {
    for (size_t first = 0; first < columns; first += tile) {
        const size_t count = columns - first < tile ? columns - first : tile;
        for (size_t tap = 0; tap < job->taps; tap++, panel += tile) {
            const double *at = padded + job->offsets[tap];
            for (size_t c = 0; c < count; c++) {
                panel[c] = at[from[first + c]];
            }
            for (size_t c = count; c < tile; c++) {
                panel[c] = 0;
            }
        }
    }
}

/* sums[column, output] = sum over the taps of weights[tap, output] panel[tap, column]: ROW of a block's outputs, one tile. */
#define MULTIPLY(TILE, BITS)                                                                                                \
    FMA_TARGET static void limbs_multiply_##TILE##_##BITS(const PASTE(PASTE(int, BITS), _t) * weights, const double *panel, \
                                                          size_t taps, double *sums) {                                      \
        Doubles total[TILE][ROW_VECTORS];                                                                                   \
        UNROLL(6) for (int c = 0; c < TILE; c++) {                                                                          \
            UNROLL(4) for (int v = 0; v < ROW_VECTORS; v++) { total[c][v] = ZERO; }                                         \
        }                                                                                                                   \
        for (size_t tap = 0; tap < taps; tap++, weights += OUTPUTS, panel += TILE) {                                        \
            Doubles w[ROW_VECTORS];                                                                                         \
            widen_##BITS(weights, w);                                                                                       \
            UNROLL(3) for (int c = 0; c < TILE; c += 2) {                                                                   \
                Doubles x[2];                                                                                               \
                SPREAD_TWO(panel + c, x);                                                                                   \
                UNROLL(4) for (int v = 0; v < ROW_VECTORS; v++) {                                                           \
                    total[c][v] = ADD_PRODUCT(total[c][v], w[v], x[0]);                                                     \
                    total[c + 1][v] = ADD_PRODUCT(total[c + 1][v], w[v], x[1]);                                             \
                }                                                                                                           \
            }                                                                                                               \
        }                                                                                                                   \
        UNROLL(6) for (int c = 0; c < TILE; c++) {                                                                          \
            UNROLL(4) for (int v = 0; v < ROW_VECTORS; v++) { STORE(sums + c * ROW + v * LANES, total[c][v]); }             \
        }                                                                                                                   \
    }
MULTIPLY(2, 16)
MULTIPLY(4, 16)
MULTIPLY(6, 16)
MULTIPLY(2, 32)
MULTIPLY(4, 32)
MULTIPLY(6, 32)
#undef MULTIPLY

/* sums[column] of one output, for FEW_TILE columns. */
#define MULTIPLY(BITS)                                                                                                 \
    FMA_TARGET static void limbs_multiply_few_##BITS(const PASTE(PASTE(int, BITS), _t) * weights, const double *panel, \
                                                     size_t taps, double *sums) {                                      \
        Doubles total[FEW_VECTORS];                                                                                    \
        UNROLL(4) for (int v = 0; v < FEW_VECTORS; v++) { total[v] = ZERO; }                                           \
        for (size_t tap = 0; tap < taps; tap++, panel += FEW_TILE) {                                                   \
            const double weight = (double)weights[tap];                                                                \
            const Doubles w = SPREAD(&weight);                                                                         \
            UNROLL(4) for (int v = 0; v < FEW_VECTORS; v++) {                                                          \
                total[v] = ADD_PRODUCT(total[v], w, LOAD(panel + v * LANES));                                          \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL(4) for (int v = 0; v < FEW_VECTORS; v++) { STORE(sums + v * LANES, total[v]); }                         \
    }
MULTIPLY(16)
MULTIPLY(32)
#undef MULTIPLY

/* One tile for ROW outputs, or in the first place of `sums` for one. */
#define MULTIPLY(BITS)                                                                                               \
    static void limbs_multiply_##BITS(const PASTE(PASTE(int, BITS), _t) * weights, const double *panel, size_t tile, \
                                      size_t taps, double *sums) {                                                   \
        if (tile == FEW_TILE) {                                                                                      \
            limbs_multiply_few_##BITS(weights, panel, taps, sums);                                                   \
        } else if (tile == 6) {                                                                                      \
            limbs_multiply_6_##BITS(weights, panel, taps, sums);                                                     \
        } else if (tile == 4) {                                                                                      \
            limbs_multiply_4_##BITS(weights, panel, taps, sums);                                                     \
        } else {                                                                                                     \
            limbs_multiply_2_##BITS(weights, panel, taps, sums);                                                     \
        }                                                                                                            \
    }
MULTIPLY(16)
MULTIPLY(32)
#undef MULTIPLY

/* Put the limbs of one output's sums, `stride` apart, together and write them to their places. */
static void limbs_put(const Job *job, const double *sums, size_t stride, uint64_t *out, const size_t *to, size_t count,
                      uint64_t mask) {
    for (size_t p = 0; p < count; p++) {
        uint64_t word = 0;
        for (size_t limb = 0; limb < job->limbs; limb++) {
            word += (uint64_t)(int64_t)sums[(limb * count + p) * stride] << (limb * job->s.limb_bits);
        }
        out[to[p]] = word & mask;
    }
}

/* All ROW outputs of `weights`, or one of few, for the tiles of a panel. */
static void limbs_multiply(const Job *job, const char *weights, const double *panel, size_t tiles, size_t tile, double *sums) {
    const size_t outputs = tile == FEW_TILE ? 1 : ROW;
    for (size_t t = 0; t < tiles; t++, panel += tile * job->taps, sums += tile * outputs) {
        if (job->s.weight_bytes == 2) {
            limbs_multiply_16((const int16_t *)(const void *)weights, panel, tile, job->taps, sums);
        } else {
            limbs_multiply_32((const int32_t *)(const void *)weights, panel, tile, job->taps, sums);
        }
    }
}

/* Part `part` of `parts` of the work. Return 0, or -1 where memory is short. */
static int limbs_work(const Job *job, size_t part, size_t parts) {
    const Shape *s = &job->s;
    const int few = job->one_by_one;
    const size_t map = s->rows * s->columns, inputs = job->group_inputs * job->padded_height * job->padded_width;
    /* Columns of a panel: as many as the cache holds, but some at least, and all limbs of a position. */
    const size_t room = PANEL_BYTES / (job->taps * sizeof(double));
    const size_t columns = few ? MOST_COLUMNS : room < MOST_TILE ? MOST_TILE : room < MOST_COLUMNS / 2 ? room : MOST_COLUMNS / 2;
    const size_t most = columns / job->limbs > 0 ? columns / job->limbs : 1;
    const size_t panels = (job->positions + most - 1) / most;
    const size_t width = (job->positions + panels - 1) / panels; /* positions of a panel */
    const size_t pieces = (job->positions + width - 1) / width, turns = few ? job->group_outputs : job->blocks;
    const uint64_t mask = s->bits >= 64 ? UINT64_MAX : ((uint64_t)1 << s->bits) - 1;
    size_t tiles = (width * job->limbs + (few ? FEW_TILE : MOST_TILE) - 1) / (few ? FEW_TILE : MOST_TILE);
    const size_t tile = few ? FEW_TILE : (width * job->limbs + 2 * tiles - 1) / (2 * tiles) * 2;
    const Share share = share_of(s->groups * pieces, turns, part, parts);
    if (share.piece == share.last_piece || share.block == share.last_block) {
        return 0;
    }
    double *panel = aligned_alloc(64, (tiles * tile * job->taps * sizeof *panel + 63) / 64 * 64);
    if (panel == NULL) {
        return -1;
    }
    double sums[MOST_COLUMNS * ROW];
    size_t from[MOST_COLUMNS], to[MOST_COLUMNS];
    for (size_t piece = share.piece; piece < share.last_piece; piece++) {
        const size_t group = piece / pieces, first = piece % pieces * width;
        const size_t count = job->positions - first < width ? job->positions - first : width;
        places(job, first, count, from, to);
        for (size_t limb = 1; limb < job->limbs; limb++) {
            for (size_t p = 0; p < count; p++) {
                from[limb * count + p] = from[p] + limb * job->limb_stride;
            }
        }
        tiles = (count * job->limbs + tile - 1) / tile;
        limbs_fill(job, (const double *)job->padded + group * inputs, from, count * job->limbs, tile, panel);
        for (size_t b = share.block; b < share.last_block; b++) {
            uint64_t *const out = job->out + group * job->group_outputs * map;
            const char *const weights = (const char *)job->weights;
            if (few) {
                const size_t output = group * job->group_outputs + b;
                limbs_multiply(job, weights + output * job->taps * s->weight_bytes, panel, tiles, tile, sums);
                limbs_put(job, sums, 1, out + b * map, to, count, mask);
                continue;
            }
            for (size_t row = 0; row < OUTPUTS && b * OUTPUTS + row < job->group_outputs; row += ROW) {
                const size_t output = b * OUTPUTS + row, rest = job->group_outputs - output, outputs = rest < ROW ? rest : ROW;
                const size_t at = (group * turns + b) * job->taps * OUTPUTS + row;
                limbs_multiply(job, weights + at * s->weight_bytes, panel, tiles, tile, sums);
                for (size_t o = 0; o < outputs; o++) {
                    limbs_put(job, sums + o, ROW, out + (output + o) * map, to, count, mask);
                }
            }
        }
    }
    free(panel);
    return 0;
}

#undef LANES
#undef ZERO
#undef LOAD
#undef STORE
#undef SPREAD
#undef SPREAD_TWO
#undef ADD_PRODUCT
#undef ROW
#undef ROW_VECTORS
#undef MOST_TILE
#undef FEW_VECTORS
#undef FEW_TILE
#undef MOST_COLUMNS
#undef PANEL_BYTES
#undef FMA_TARGET
