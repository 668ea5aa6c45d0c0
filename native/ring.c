/* deepreduce.private.ring._kernel: convolutions and matrix products modulo 2^k.
 *
 * Functions from buffers to buffers. Every size is checked here, against the buffers themselves, before memory is touched. The
 * GIL is released while the work runs; threads share what they read alone.
 *
 * There are two arithmetics; both give the same.
 *
 *   ring_body.h   words, where the processor multiplies vectors of them (AVX-512). They wrap modulo 2^64, or 2^32 where the ring
 *                 has no more bits, and 2^k divides that: sums of products are exact in the ring in any order
 *   ring_limbs.h  limbs in double precision, where it has fused multiply-add (AVX2, AArch64)
 *
 * In both a block of output positions is laid out as a panel, one row for each tap of the kernel; a block of output channels
 * times that panel is kept in registers (Goto, van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS
 * 2008). Weights stay as narrow as they are, 16 or 32 bits, because they, not the numbers, fill memory.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define DR_X86_64 1
#else
#define DR_X86_64 0
#endif
#if defined(__LP64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(_WIN32) && (DR_X86_64 || defined(__aarch64__))
#define DR_RING 1
#include <pthread.h>
#if DR_X86_64
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif
#else
#define DR_RING 0
#endif

#define MOST 0x4000000       /* of any dimension */
#define MOST_THREADS 256
#define OUTPUTS 16           /* channels of a block of outputs */
#define LEAST_LIMB_BITS 4
#define MOST_LIMB_BITS 53

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)

typedef struct {
    size_t images, channels, height, width, outputs, rows, columns, kernel_height, kernel_width;
    size_t stride_down, stride_right, dilation_down, dilation_right, groups, bits, weight_bytes, limb_bits;
    ptrdiff_t top, left; /* rows and columns of zeros in front; negative: that many are cut away */
} Shape;

#if DR_RING

typedef struct {
    Shape s;
    size_t taps, positions, group_inputs, group_outputs, blocks; /* blocks of outputs in a group */
    size_t padded_height, padded_width;
    int one_by_one;            /* lanes are positions, and output channels come one by one; else lanes are channels */
    size_t limbs, limb_stride; /* of doubles: limbs of a number, and how far apart they are in `padded`; no limbs: words */
    const void *weights;
    void *padded;    /* [limbs, images, channels, padded height, padded width] in the arithmetic's own type */
    size_t *offsets; /* of each tap in `padded` */
    uint64_t *out;
} Job;

typedef struct {
    const Job *job;
    size_t part, parts;
    int failed;
    pthread_t thread;
    int runs;
} Part;

/* Positions [first, first + count): where each begins in `padded` and in `out`, for the first channel of either. */
static void places(const Job *job, size_t first, size_t count, size_t *from, size_t *to) {
    const Shape *s = &job->s;
    const size_t map = s->rows * s->columns, plane = job->padded_height * job->padded_width;
    for (size_t p = 0; p < count; p++) {
        const size_t image = (first + p) / map, rest = (first + p) % map;
        from[p] = image * s->channels * plane + rest / s->columns * s->stride_down * job->padded_width +
                  rest % s->columns * s->stride_right;
        to[p] = image * s->outputs * map + rest;
    }
}

/* Columns [*first, *last) of a padded row are the input's; the others are 0. */
static void inside(const Job *job, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t right = (ptrdiff_t)job->padded_width, left = job->s.left, end = (ptrdiff_t)job->s.width + left;
    *first = left > 0 ? (left < right ? left : right) : 0;
    *last = end < right ? (end > *first ? end : *first) : right;
}

/* What one part of the work takes: pieces of groups and positions, and blocks of outputs. Empty where either is. */
typedef struct {
    size_t piece, last_piece, block, last_block;
} Share;

/* Part `part` of `parts` of all pieces and blocks; whichever are more are cut. */
static Share share_of(size_t pieces, size_t blocks, size_t part, size_t parts) {
    Share share = {0, pieces, 0, blocks};
    if (blocks > pieces) {
        share.block = blocks * part / parts;
        share.last_block = blocks * (part + 1) / parts;
    } else {
        share.piece = pieces * part / parts;
        share.last_piece = pieces * (part + 1) / parts;
    }
    return share;
}

#define DR_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define UNROLL(n) DR_PRAGMA(clang loop unroll(full))
#else
#define UNROLL(n) DR_PRAGMA(GCC unroll n)
#endif

#include "ring_limbs.h"

#if DR_X86_64
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl")))

/* 64-bit words */
#define NAME(x) PASTE(x, _64)
#define WORD uint64_t
#define LANES 8
#define WIDE_16(p) ((Vector_64)_mm512_cvtepi16_epi64(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define WIDE_32(p) ((Vector_64)_mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define SPREAD(x) ((Vector_64)_mm512_set1_epi64((long long)(x)))
#define MOST_POSITIONS 12
#define WIDTHS(X) X(1) X(2) X(4) X(6) X(8) X(10) X(12)
#include "ring_body.h"

/* 32-bit words */
#define NAME(x) PASTE(x, _32)
#define WORD uint32_t
#define LANES 16
#define WIDE_16(p) ((Vector_32)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define WIDE_32(p) ((Vector_32)_mm512_loadu_si512((const void *)(p)))
#define SPREAD(x) ((Vector_32)_mm512_set1_epi32((int)(x)))
#define MOST_POSITIONS 24
#define WIDTHS(X) X(1) X(2) X(4) X(8) X(12) X(16) X(20) X(24)
#include "ring_body.h"
#endif

static void *start(void *argument) {
    Part *part = argument;
    const Job *job = part->job;
    if (job->limbs) {
        part->failed = limbs_work(job, part->part, part->parts);
    }
#if DR_X86_64
    else if (job->s.bits <= 32) {
        part->failed = work_32(job, part->part, part->parts);
    } else {
        part->failed = work_64(job, part->part, part->parts);
    }
#endif
    return NULL;
}

/* Return 0, or -1 where memory is short. */
static int convolve(Job *job, const uint64_t *x, size_t threads) {
    const Shape *s = &job->s;
    const size_t plane = job->padded_height * job->padded_width;
    const size_t word = job->limbs || s->bits > 32 ? 8 : 4, copies = job->limbs ? job->limbs : 1;
    Part parts[MOST_THREADS];
    int failed = -1;
    job->offsets = malloc(job->taps * sizeof *job->offsets);
    job->limb_stride = s->images * s->channels * plane;
    job->padded = malloc(copies * job->limb_stride * word);
    if (job->offsets != NULL && job->padded != NULL) {
        size_t *offset = job->offsets;
        for (size_t c = 0; c < job->group_inputs; c++) {
            for (size_t i = 0; i < s->kernel_height; i++) {
                for (size_t j = 0; j < s->kernel_width; j++) {
                    *offset++ = c * plane + i * s->dilation_down * job->padded_width + j * s->dilation_right;
                }
            }
        }
        if (job->limbs) {
            limbs_pad(job, x);
        }
#if DR_X86_64
        else if (word == 4) {
            pad_32(job, x);
        } else {
            pad_64(job, x);
        }
#endif
        failed = 0;
        for (size_t t = 0; t < threads; t++) {
            parts[t] = (Part){.job = job, .part = t, .parts = threads};
            parts[t].runs = t > 0 && pthread_create(&parts[t].thread, NULL, start, &parts[t]) == 0;
        }
        for (size_t t = 0; t < threads; t++) {
            if (!parts[t].runs) {
                start(&parts[t]);
            }
        }
        for (size_t t = 0; t < threads; t++) {
            if (parts[t].runs) {
                pthread_join(parts[t].thread, NULL);
            }
            failed |= parts[t].failed;
        }
    }
    free(job->offsets);
    free(job->padded);
    return failed;
}
#endif

/* Multiply sizes into *total; 0 where that leaves 2^56. */
static int times(size_t *total, size_t factor) {
    if (factor != 0 && *total > ((size_t)1 << 56) / factor) {
        return 0;
    }
    *total *= factor;
    return 1;
}

/* Are there vectors of words? */
static int has_words(void) {
#if DR_RING && DR_X86_64
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

/* Is there fused multiply-add of doubles? */
static int has_limbs(void) {
#if DR_RING && DR_X86_64
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return DR_RING; /* every AArch64 has it */
#endif
}

static PyObject *py_features(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return Py_BuildValue("{s:O,s:O}", "avx512", has_words() ? Py_True : Py_False, "fma", has_limbs() ? Py_True : Py_False);
}

static PyObject *py_convolve(PyObject *self, PyObject *args) {
    Py_buffer x, weights, out;
    Shape s;
    Py_ssize_t n[16], limb_bits, threads;
    int wrong = 1, failed = 0, one_by_one;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*(nnnnnnnnnnnnnnnnnnn)np", &x, &weights, &out, &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &n[6],
                          &n[7], &n[8], &n[9], &n[10], &n[11], &n[12], &s.top, &s.left, &n[13], &n[14], &n[15], &limb_bits, &threads, &one_by_one)) {
        return NULL;
    }
    int in_range = (limb_bits == 0 ? has_words() : has_limbs() && limb_bits >= LEAST_LIMB_BITS && limb_bits <= MOST_LIMB_BITS) &&
                   threads >= 1 && threads <= MOST_THREADS && s.top > -MOST && s.top < MOST && s.left > -MOST && s.left < MOST;
    for (int i = 0; i < 16; i++) {
        in_range &= n[i] >= 1 && n[i] <= MOST;
    }
    s = (Shape){(size_t)n[0], (size_t)n[1], (size_t)n[2], (size_t)n[3], (size_t)n[4], (size_t)n[5], (size_t)n[6],
                (size_t)n[7], (size_t)n[8], (size_t)n[9], (size_t)n[10], (size_t)n[11], (size_t)n[12], (size_t)n[13],
                (size_t)n[14], (size_t)n[15], (size_t)limb_bits, s.top, s.left};
    if (in_range && s.channels % s.groups == 0 && s.outputs % s.groups == 0 && s.bits <= 64 &&
        (s.weight_bytes == 2 || s.weight_bytes == 4)) {
        const size_t group_outputs = s.outputs / s.groups, blocks = (group_outputs + OUTPUTS - 1) / OUTPUTS;
        const size_t padded_height = (s.rows - 1) * s.stride_down + (s.kernel_height - 1) * s.dilation_down + 1;
        const size_t padded_width = (s.columns - 1) * s.stride_right + (s.kernel_width - 1) * s.dilation_right + 1;
        size_t in = 8, weight = s.weight_bytes, to = 8, padded = 8, taps = s.channels / s.groups;
        const int small = times(&taps, s.kernel_height) && times(&taps, s.kernel_width) && times(&in, s.images) &&
                          times(&in, s.channels) && times(&in, s.height) && times(&in, s.width) && times(&to, s.images) &&
                          times(&to, s.outputs) && times(&to, s.rows) && times(&to, s.columns) && times(&weight, s.groups) &&
                          times(&weight, one_by_one ? group_outputs : blocks * OUTPUTS) && times(&weight, taps) &&
                          times(&padded, s.images) && times(&padded, s.channels) && times(&padded, padded_height) &&
                          times(&padded, padded_width) && times(&padded, s.limb_bits ? s.bits : 1); /* more than its limbs */
        if (small && (size_t)x.len == in && (size_t)weights.len == weight && (size_t)out.len == to) {
#if DR_RING
            Job job = {.s = s,
                       .taps = taps,
                       .positions = s.images * s.rows * s.columns,
                       .group_inputs = s.channels / s.groups,
                       .group_outputs = group_outputs,
                       .blocks = blocks,
                       .padded_height = padded_height,
                       .padded_width = padded_width,
                       .one_by_one = one_by_one,
                       .limbs = s.limb_bits ? limbs_of(s.bits, s.limb_bits) : 0,
                       .weights = weights.buf,
                       .out = out.buf};
            wrong = 0;
            Py_BEGIN_ALLOW_THREADS
            failed = convolve(&job, x.buf, (size_t)threads);
            Py_END_ALLOW_THREADS
#endif
        }
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&weights);
    PyBuffer_Release(&out);
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, "sizes and threads are in range, fit together, and match the buffers");
        return NULL;
    }
    if (failed) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"features", py_features, METH_NOARGS,
     "features() -> {'avx512': bool, 'fma': bool}: whether this processor multiplies vectors of words, and of doubles."},
    {"convolve", py_convolve, METH_VARARGS,
     "convolve(x, weights, out, (images, channels, height, width, outputs, rows, columns, kernel height, kernel width,\n"
     "         stride down, stride right, dilation down, dilation right, top, left, groups, bits, bytes of a weight, bits of a limb\n"
     "         or 0 for words), threads, one by one)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "deepreduce.private.ring._kernel", "Convolutions and matrix products modulo 2^k.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
