# A bucket for dataset roots, a role that builds and a role that reads.

locals {
  open = var.access != "private"
}

resource "aws_s3_bucket" "roots" {
  bucket = var.bucket
  tags   = var.tags
}

resource "aws_s3_bucket_versioning" "roots" {
  bucket = aws_s3_bucket.roots.id

  versioning_configuration {
    status = var.versioning ? "Enabled" : "Suspended"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "roots" {
  bucket = aws_s3_bucket.roots.id

  rule {
    # Not KMS: a public root must be readable without a key policy, and KMS bills each range read.
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "roots" {
  bucket = aws_s3_bucket.roots.id

  rule {
    id     = "interrupted-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = var.expire_uploads_days
    }
  }

  dynamic "rule" {
    for_each = var.versioning ? [1] : []

    content {
      id     = "old-versions"
      status = "Enabled"

      filter {}

      noncurrent_version_expiration {
        noncurrent_days = var.noncurrent_days
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.roots]
}

resource "aws_s3_bucket_ownership_controls" "roots" {
  bucket = aws_s3_bucket.roots.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "roots" {
  bucket                  = aws_s3_bucket.roots.id
  block_public_acls       = true
  ignore_public_acls      = true
  block_public_policy     = !local.open
  restrict_public_buckets = !local.open
}

resource "aws_s3_bucket_cors_configuration" "roots" {
  count  = length(var.cors_origins) > 0 ? 1 : 0
  bucket = aws_s3_bucket.roots.id

  cors_rule {
    allowed_methods = ["GET", "HEAD"]
    allowed_origins = var.cors_origins
    allowed_headers = ["Range", "If-Match", "If-None-Match", "Authorization"]
    expose_headers  = ["Accept-Ranges", "Content-Length", "Content-Range", "ETag"]
    max_age_seconds = 3600
  }
}

resource "aws_s3_bucket_request_payment_configuration" "roots" {
  count  = var.access == "requester-pays" ? 1 : 0
  bucket = aws_s3_bucket.roots.id
  payer  = "Requester"
}

data "aws_iam_policy_document" "everybody" {
  statement {
    sid       = "List"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket"]
    resources = [aws_s3_bucket.roots.arn]

    principals {
      type        = "*"
      identifiers = ["*"]
    }
  }

  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.roots.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }
  }
}

resource "aws_s3_bucket_policy" "everybody" {
  count  = local.open ? 1 : 0
  bucket = aws_s3_bucket.roots.id
  policy = data.aws_iam_policy_document.everybody.json

  depends_on = [aws_s3_bucket_public_access_block.roots]
}
