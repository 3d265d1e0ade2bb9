/* Decodes a rectangle of a JPEG, equal bit for bit to the same rectangle of the whole image.
 *
 * Rows above and below the rectangle are only read (their codes have no fixed length), columns beside it are read and
 * not transformed. Every warning of libjpeg, at any place of the file, is a refusal: what is damaged is for the caller's
 * full decoder to judge, so that the same files count as broken with this module and without it.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: other libjpegs cannot decode a part of an image, older ones do it wrongly"
#endif

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf refusal;
    JDIMENSION top, left, height, width; /* the rectangle; `open_file` widens its columns */
    unsigned char *pixels;               /* height × width × 3 */
} Job;

static void refuse(j_common_ptr jpeg)
{
    longjmp(((Job *)jpeg->client_data)->refusal, 1);
}

static void refuse_warnings(j_common_ptr jpeg, int level)
{
    if (level < 0)
        refuse(jpeg);
}

/* Three components (or a grey one) in one scan of Huffman codes, the colours sampled once a block of pixels. Files in
 * several scans, progressive ones too, have to be held whole, which leaves little to be saved. */
static int is_usual(struct jpeg_decompress_struct *jpeg)
{
    const jpeg_component_info *parts = jpeg->comp_info;
    if (jpeg->data_precision != 8 || jpeg->arith_code || jpeg_has_multiple_scans(jpeg))
        return 0;
    if (jpeg->jpeg_color_space == JCS_GRAYSCALE)
        return jpeg->num_components == 1;
    if (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_RGB)
        return 0;
    for (int part = 1; part < 3; part++)
        if (parts[part].h_samp_factor != 1 || parts[part].v_samp_factor != 1)
            return 0;
    return jpeg->num_components == 3;
}

/* Reads the header, and widens the rectangle to whole blocks and by one more on each side: colours are interpolated
 * between their neighbours. Returns 0 where the rectangle is not of this image, or the image not of the usual kind. */
static int open_file(Job *job, const unsigned char *data, unsigned long size)
{
    struct jpeg_decompress_struct *jpeg = &job->jpeg;
    if (setjmp(job->refusal))
        return 0;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, data, size);
    jpeg_read_header(jpeg, TRUE);
    if (!is_usual(jpeg) || job->height == 0 || job->width == 0 || job->height > jpeg->image_height ||
        job->top > jpeg->image_height - job->height || job->width > jpeg->image_width ||
        job->left > jpeg->image_width - job->width)
        return 0;
    JDIMENSION block = DCTSIZE * (jpeg->num_components == 1 ? 1 : jpeg->max_h_samp_factor);
    JDIMENSION first = job->left / block, right = job->left + job->width;
    job->left = first ? (first - 1) * block : 0;
    right = (right + block - 1) / block * block + block;
    job->width = (right < jpeg->image_width ? right : jpeg->image_width) - job->left;
    return 1;
}

/* Decodes the widened rectangle, and reads the file to its end. */
static int decode_pixels(Job *job)
{
    struct jpeg_decompress_struct *jpeg = &job->jpeg;
    JDIMENSION left = job->left, width = job->width, rest;
    if (setjmp(job->refusal))
        return 0;
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(jpeg);
    jpeg_crop_scanline(jpeg, &left, &width);
    if (left != job->left || width != job->width)
        return 0;
    jpeg_skip_scanlines(jpeg, job->top);
    while (jpeg->output_scanline < job->top + job->height) {
        JSAMPROW row = job->pixels + (size_t)(jpeg->output_scanline - job->top) * width * 3;
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    rest = jpeg->output_height - jpeg->output_scanline;
    if (rest) { /* up to the last row, which is read: to skip that as well would be to look at nothing of them */
        JSAMPARRAY row = jpeg->mem->alloc_sarray((j_common_ptr)jpeg, JPOOL_IMAGE, width * 3, 1);
        jpeg_skip_scanlines(jpeg, rest - 1);
        jpeg_read_scanlines(jpeg, row, 1);
    }
    jpeg_finish_decompress(jpeg);
    return 1;
}

PyDoc_STRVAR(decode_doc,
    "decode(data, top, left, height, width) -> (pixels, left, width) or None\n\n"
    "Rows `top` to `top + height` of a JPEG as RGB bytes, in the columns `left` to `left + width` that are returned and\n"
    "hold those asked for; only the latter equal the whole image's. None: not the usual kind of file, or a damaged one.");

static PyObject *decode(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned int top, left, height, width;
    int done;
    if (!PyArg_ParseTuple(args, "y*IIII", &data, &top, &left, &height, &width))
        return NULL;
    Job job = {.top = top, .left = left, .height = height, .width = width};
    PyObject *pixels = NULL, *result = NULL;
    job.jpeg.err = jpeg_std_error(&job.errors);
    job.jpeg.client_data = &job;
    job.errors.error_exit = refuse;
    job.errors.emit_message = refuse_warnings;

    Py_BEGIN_ALLOW_THREADS
    done = open_file(&job, data.buf, (unsigned long)data.len);
    Py_END_ALLOW_THREADS
    if (done && (pixels = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)job.height * job.width * 3)) != NULL) {
        job.pixels = (unsigned char *)PyByteArray_AS_STRING(pixels);
        Py_BEGIN_ALLOW_THREADS
        done = decode_pixels(&job);
        Py_END_ALLOW_THREADS
        if (done)
            result = Py_BuildValue("(OII)", pixels, job.left, job.width);
    }
    jpeg_destroy_decompress(&job.jpeg);
    Py_XDECREF(pixels);
    PyBuffer_Release(&data);
    if (result == NULL && !PyErr_Occurred())
        Py_RETURN_NONE;
    return result;
}

static PyMethodDef methods[] = {{"decode", decode, METH_VARARGS, decode_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "pretrain_region", "Decodes a rectangle of a JPEG.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_pretrain_region(void)
{
    return PyModule_Create(&definition);
}
